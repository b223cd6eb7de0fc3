// The messages that this page uses, and the binary framing: u32 little-endian header length, JSON header, payload.

export const RATE = 24000;
export type CharacterState = "idle" | "listening" | "speaking" | "interrupting" | "draining";

export interface SessionReady {
  type: "session.ready";
  seq: number;
  session_id: string;
  resume_token: string;
  character_name: string;
  voices: string[];
  fps: number;
  limits: { max_text_chars: number; grace_ms: number };
  disclosure: string;
}

export interface MediaInit {
  type: "media.init";
  seq: number;
  mime: string;
  pts_samples: number;
}

export interface MediaChunk {
  type: "media.chunk";
  seq: number;
  pts_samples: number;
  duration_samples: number;
  state: CharacterState;
  segment_id?: string;
  user_samples: number;
  compute_ms: number;
}

export type ServerMessage =
  | SessionReady
  | MediaInit
  | MediaChunk
  | { type: "resumed"; seq: number; session_id: string; resume_token: string; state: CharacterState }
  | { type: "session.queued"; seq: number; position: number }
  | { type: "resync_required"; seq: number; reason: string }
  | { type: "replaced"; seq: number; reason: string }
  | { type: "segment.opened"; seq: number; segment_id: string; event_id?: string }
  | { type: "playback.started"; seq: number; segment_id: string; pts_samples: number }
  | { type: "playback.finished"; seq: number; segment_id: string; position_samples: number; interrupted: boolean }
  | { type: "state"; seq: number; state: CharacterState; previous: CharacterState; pts_samples: number }
  | { type: "flow"; seq: number; credits: number; buffered_samples: number }
  | { type: "pong"; seq: number }
  | { type: "warning"; seq: number; code: string; message: string }
  | { type: "error"; seq: number; code: string; message: string; retryable: boolean }
  | { type: "going_away"; seq: number; deadline_ms: number; reason: string }
  | { type: "closed"; seq: number; reason: string };

const encoder = new TextEncoder();
const decoder = new TextDecoder();

export function pack(message: object, payload: ArrayBuffer): ArrayBuffer {
  const header = encoder.encode(JSON.stringify(message));
  const frame = new Uint8Array(4 + header.length + payload.byteLength);
  new DataView(frame.buffer).setUint32(0, header.length, true);
  frame.set(header, 4);
  frame.set(new Uint8Array(payload), 4 + header.length);
  return frame.buffer;
}

export function unpack(data: string | ArrayBuffer): { message: ServerMessage; payload: Uint8Array<ArrayBuffer> } {
  if (typeof data === "string") {
    return { message: JSON.parse(data) as ServerMessage, payload: new Uint8Array(0) };
  }
  const length = new DataView(data).getUint32(0, true);
  const header = decoder.decode(new Uint8Array(data, 4, length));
  return { message: JSON.parse(header) as ServerMessage, payload: new Uint8Array(data, 4 + length) };
}
