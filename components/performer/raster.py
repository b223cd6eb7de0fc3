"""Compiled kernels of the renderer: blend shapes, light, project, rasterise, downsample.

Kernels write into the given buffers and keep no state, so several threads can draw frames at once.
The image is drawn with SUPERSAMPLING x SUPERSAMPLING samples per pixel; depth is 1/distance (0 = empty).
"""

from typing import Final

import numba
import numpy as np

SUPERSAMPLING: Final = 2
"""Samples along each side of a pixel."""
LIGHT_RANGE: Final = 1.6
"""Linear light of the last entry of the display curve."""

PLAIN: Final = 0
"""Fill with the vertex colours."""
SKIN: Final = 1
"""Vertex colours times the skin texture."""
EYE: Final = 2
"""Vertex attributes are light and the direction from the eye's centre; iris and pupil are computed per sample."""

_jit = numba.njit(cache=True, nogil=True, fastmath=True, error_model="numpy")


@_jit
def blend(rest, starts, vertices, deltas, weights, out):  # type: ignore[no-untyped-def]
    """Compute out = rest + sum of weighted sparse deltas; shape k has rows starts[k]..starts[k+1]."""
    for i in range(rest.shape[0]):
        for c in range(3):
            out[i, c] = rest[i, c]
    for k in range(weights.shape[0]):
        weight = weights[k]
        if abs(weight) > 1e-4:
            for row in range(starts[k], starts[k + 1]):
                i = vertices[row]
                for c in range(3):
                    out[i, c] += weight * deltas[row, c]


@_jit
def normals(positions, triangles, out):  # type: ignore[no-untyped-def]
    """Compute area-weighted unit vertex normals."""
    out[:] = 0.0
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ux = positions[b, 0] - positions[a, 0]
        uy = positions[b, 1] - positions[a, 1]
        uz = positions[b, 2] - positions[a, 2]
        vx = positions[c, 0] - positions[a, 0]
        vy = positions[c, 1] - positions[a, 1]
        vz = positions[c, 2] - positions[a, 2]
        nx = uy * vz - uz * vy
        ny = uz * vx - ux * vz
        nz = ux * vy - uy * vx
        for k in range(3):
            i = triangles[t, k]
            out[i, 0] += nx
            out[i, 1] += ny
            out[i, 2] += nz
    for i in range(out.shape[0]):
        scale = 1.0 / np.sqrt(out[i, 0] ** 2 + out[i, 1] ** 2 + out[i, 2] ** 2 + 1e-20)
        for c in range(3):
            out[i, c] *= scale


@_jit
def place(positions, normal, follow, rotation, pivot, shift, out, out_normal):  # type: ignore[no-untyped-def]
    """Rotate a mesh with the head: `follow` 1 = rigidly with the head, 0 = fixed to the shoulders."""
    for i in range(positions.shape[0]):
        px = positions[i, 0] - pivot[0]
        py = positions[i, 1] - pivot[1]
        pz = positions[i, 2] - pivot[2]
        w = follow[i]
        for c in range(3):
            turned = rotation[c, 0] * px + rotation[c, 1] * py + rotation[c, 2] * pz + pivot[c] + shift[c]
            out[i, c] = positions[i, c] + w * (turned - positions[i, c])
            turned_n = rotation[c, 0] * normal[i, 0] + rotation[c, 1] * normal[i, 1] + rotation[c, 2] * normal[i, 2]
            out_normal[i, c] = normal[i, c] + w * (turned_n - normal[i, c])


@_jit
def project(positions, camera, out):  # type: ignore[no-untyped-def]
    """Compute screen x, y (samples) and depth 1/distance; camera: distance, focal_samples, centre_x, centre_y, lift."""
    for i in range(positions.shape[0]):
        near = 1.0 / (camera[0] - positions[i, 2])
        out[i, 0] = camera[2] + camera[1] * positions[i, 0] * near
        out[i, 1] = camera[3] - camera[1] * (positions[i, 1] - camera[4]) * near
        out[i, 2] = near


@_jit
def shade(positions, normal, albedo, gloss, occlusion, light, two_sided, out):  # type: ignore[no-untyped-def]
    """Compute the lit linear colour of every vertex.

    light rows: 0 key direction, 1 key colour, 2 sky, 3 ground, 4 rim direction, 5 rim colour, 6 scatter colour,
    7 half vector of key and view.
    """
    for i in range(positions.shape[0]):
        nx, ny, nz = normal[i, 0], normal[i, 1], normal[i, 2]
        if two_sided and nz < 0.0:
            nx, ny, nz = nx * 0.6, ny * 0.6, -nz * 0.6
        key = nx * light[0, 0] + ny * light[0, 1] + nz * light[0, 2]
        wrapped = max(0.0, (key + 0.3) / 1.3)
        wrapped = wrapped * (0.4 + 0.6 * wrapped)
        up = 0.5 + 0.5 * ny
        facing = max(0.0, nz)
        edge = (1.0 - facing) ** 3
        rim = edge * max(0.0, nx * light[4, 0] + ny * light[4, 1] + nz * light[4, 2] + 0.2)
        scatter = max(0.0, 1.0 - abs(key - 0.1) * 2.2)
        half = max(0.0, nx * light[7, 0] + ny * light[7, 1] + nz * light[7, 2])
        half2 = half * half
        half8 = half2 * half2 * half2 * half2
        shine = gloss[i] * (0.35 * half8 + 0.65 * half8 * half8 * half8)
        shadow = occlusion[i]
        for c in range(3):
            # Light in hollows has been scattered by skin: it keeps more red.
            ao = shadow * (1.3 - 0.3 * shadow) if c == 0 else shadow
            ambient = light[3, c] + (light[2, c] - light[3, c]) * up
            diffuse = light[1, c] * wrapped * (0.4 + 0.6 * ao) + ambient * ao + light[6, c] * scatter * ao
            out[i, c] = albedo[i, c] * diffuse + (shine * light[1, c] + rim * light[5, c] * (0.3 + gloss[i])) * ao


@_jit
def _eye_colour(nx, ny, nz, eye):  # type: ignore[no-untyped-def]
    """Return an eyeball's colour factor in direction n; for the rows of `eye` see `scene.Scene.eye`."""
    scale = 1.0 / np.sqrt(nx * nx + ny * ny + nz * nz)
    along = (nx * eye[0, 0] + ny * eye[0, 1] + nz * eye[0, 2]) * scale
    away = np.sqrt(max(0.0, 2.0 - 2.0 * along))
    iris_radius, pupil_radius = eye[3, 0], eye[3, 1]
    edge = eye[3, 2]
    iris = min(1.0, max(0.0, (iris_radius - away) / edge + 0.5))
    pupil = min(1.0, max(0.0, (pupil_radius - away) / edge + 0.5))
    ring = min(1.0, max(0.0, (away - 0.72 * iris_radius) / (0.28 * iris_radius)))
    tone = 0.75 + 0.5 * (away - pupil_radius) / iris_radius
    r = eye[2, 0] + iris * (eye[1, 0] * tone * (1.0 - 0.65 * ring) - eye[2, 0])
    g = eye[2, 1] + iris * (eye[1, 1] * tone * (1.0 - 0.65 * ring) - eye[2, 1])
    b = eye[2, 2] + iris * (eye[1, 2] * tone * (1.0 - 0.65 * ring) - eye[2, 2])
    dark = 1.0 - 0.96 * pupil
    glint = (nx * eye[4, 0] + ny * eye[4, 1] + nz * eye[4, 2]) * scale
    catch = 0.45 * min(1.0, max(0.0, (glint - 0.988) / 0.008))
    return r * dark + catch, g * dark + catch, b * dark + catch


@_jit
def _sample(texture, u, v):  # type: ignore[no-untyped-def]
    """Return the bilinear sample at column u and row v."""
    u = min(max(u, 0.0), texture.shape[1] - 1.001)
    v = min(max(v, 0.0), texture.shape[0] - 1.001)
    iu, iv = int(u), int(v)
    fu, fv = u - iu, v - iv
    w00, w01 = (1.0 - fu) * (1.0 - fv), fu * (1.0 - fv)
    w10, w11 = (1.0 - fu) * fv, fu * fv
    p, q = texture[iv, iu], texture[iv, iu + 1]
    r, s = texture[iv + 1, iu], texture[iv + 1, iu + 1]
    return (
        w00 * p[0] + w01 * q[0] + w10 * r[0] + w11 * s[0],
        w00 * p[1] + w01 * q[1] + w10 * r[1] + w11 * s[1],
        w00 * p[2] + w01 * q[2] + w10 * r[2] + w11 * s[2],
    )


@_jit
def fill(screen, colour, extra, triangles, kind, cull, texture, eye, depth, image):  # type: ignore[no-untyped-def]
    """Draw triangles into `image` [H, W, 3] with `depth` [H, W].

    extra [N, 2] holds texture coordinates in texels for SKIN; for EYE, colour[:, 0] and extra hold the direction and
    colour[:, 1] the light. `cull` skips triangles that face away (clockwise on the screen).
    """
    height, width = depth.shape
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t, 0], triangles[t, 1], triangles[t, 2]
        ax, ay = screen[a, 0], screen[a, 1]
        bx, by = screen[b, 0], screen[b, 1]
        cx, cy = screen[c, 0], screen[c, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area >= 0.0:
            if cull or area < 1e-9:
                continue
            b, c = c, b
            bx, by, cx, cy = cx, cy, bx, by
            area = -area
        elif area > -1e-9:
            continue
        x0 = max(0, int(np.ceil(min(ax, bx, cx) - 0.5)))
        x1 = min(width - 1, int(np.floor(max(ax, bx, cx) - 0.5)))
        y0 = max(0, int(np.ceil(min(ay, by, cy) - 0.5)))
        y1 = min(height - 1, int(np.floor(max(ay, by, cy) - 0.5)))
        if x0 > x1 or y0 > y1:
            continue
        scale = 1.0 / area
        # Barycentric weights are linear on the screen: value at the first sample and a step along x.
        step_b = (cy - ay) * scale
        step_c = -(by - ay) * scale
        za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
        for y in range(y0, y1 + 1):
            qx, qy = x0 + 0.5 - ax, y + 0.5 - ay
            wb = (qx * (cy - ay) - qy * (cx - ax)) * scale
            wc = (qy * (bx - ax) - qx * (by - ay)) * scale
            for x in range(x0, x1 + 1):
                wa = 1.0 - wb - wc
                if wa >= 0.0 and wb >= 0.0 and wc >= 0.0:
                    z = wa * za + wb * zb + wc * zc
                    if z > depth[y, x]:
                        depth[y, x] = z
                        red = wa * colour[a, 0] + wb * colour[b, 0] + wc * colour[c, 0]
                        green = wa * colour[a, 1] + wb * colour[b, 1] + wc * colour[c, 1]
                        blue = wa * colour[a, 2] + wb * colour[b, 2] + wc * colour[c, 2]
                        if kind == SKIN:
                            u = wa * extra[a, 0] + wb * extra[b, 0] + wc * extra[c, 0]
                            v = wa * extra[a, 1] + wb * extra[b, 1] + wc * extra[c, 1]
                            tint_r, tint_g, tint_b = _sample(texture, u, v)
                            red, green, blue = red * tint_r, green * tint_g, blue * tint_b
                        elif kind == EYE:
                            ny = wa * extra[a, 0] + wb * extra[b, 0] + wc * extra[c, 0]
                            nz = wa * extra[a, 1] + wb * extra[b, 1] + wc * extra[c, 1]
                            eye_r, eye_g, eye_b = _eye_colour(red, ny, nz, eye)
                            red, green, blue = eye_r * green, eye_g * green, eye_b * green
                        image[y, x, 0] = red
                        image[y, x, 1] = green
                        image[y, x, 2] = blue
                wb += step_b
                wc += step_c


@_jit
def resolve(image, curve, out):  # type: ignore[no-untyped-def]
    """Average the samples of each pixel and map linear light to bytes through `curve` (uint8 over 0..LIGHT_RANGE)."""
    top = curve.shape[0] - 1
    scale = 0.25 * top / LIGHT_RANGE
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            for c in range(3):
                total = (
                    image[2 * y, 2 * x, c]
                    + image[2 * y, 2 * x + 1, c]
                    + image[2 * y + 1, 2 * x, c]
                    + image[2 * y + 1, 2 * x + 1, c]
                )
                out[y, x, c] = curve[min(top, max(0, int(total * scale + 0.5)))]
