"""Image quality: PSNR and SSIM of the autoencoder, Frechet distance of generated frames."""

import numpy as np

from components.evaluate.cases.cases import Array


def psnr_db(video: Array, ground_truth: Array) -> float:
    """Return the peak signal-to-noise ratio (dB) of two uint8 videos [T, H, W, 3]; 100 if they are equal."""
    errors = [
        np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2) for a, b in zip(video, ground_truth, strict=True)
    ]
    error = float(np.mean(errors))
    return 10 * float(np.log10(255**2 / max(error, 255**2 / 1e10)))


def ssim(video: Array, ground_truth: Array) -> float:
    """Return the SSIM (Wang 2004: luma, Gaussian window of sigma 1.5) of two uint8 videos [T, H, W, 3]."""
    import cv2

    def blur(image: Array) -> Array:
        out: Array = cv2.GaussianBlur(image, (11, 11), 1.5)
        return out

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for a, b in zip(video, ground_truth, strict=True):
        x, y = (cv2.cvtColor(p, cv2.COLOR_RGB2GRAY).astype(np.float32) for p in (a, b))
        mx, my = blur(x), blur(y)
        vx, vy, cxy = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
        score = (2 * mx * my + c1) * (2 * cxy + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
        values.append(float(score.mean()))
    return float(np.mean(values))


def frechet(a: Array, b: Array) -> float:
    """Return the Frechet distance of two sets of features [N, D]: ||mu1 - mu2||^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))."""
    mean = float(((a.mean(0) - b.mean(0)) ** 2).sum())
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # Tr((S1 S2)^1/2) is the sum of the square roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is symmetric.
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    cross = np.sqrt(np.clip(np.linalg.eigvalsh(root @ second @ root), 0, None)).sum()
    return max(0.0, mean + float(np.trace(first) + np.trace(second) - 2 * cross))
