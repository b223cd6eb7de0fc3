// One WebSocket that opens a session, resumes it after a loss, and gives up only when the server says so.

import { pack, unpack, type ServerMessage } from "./protocol";

interface Memory {
  session_id: string;
  resume_token: string;
  last_seq: number;
}

export type Link = "connecting" | "live" | "queued" | "lost" | "ended";

const MEMORY_KEY = "lpm-session";
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 8000;
const PING_MS = 15000;

export class Connection {
  onMessage: (message: ServerMessage, payload: Uint8Array<ArrayBuffer>) => void = () => {};
  onLink: (link: Link, detail: string) => void = () => {};

  private socket: WebSocket | null = null;
  private memory: Memory | null = recall();
  private retries = 0;
  private ended = false;
  private events = 0;
  private readonly run = Math.random().toString(36).slice(2, 8);

  constructor(private readonly token: string) {
    window.setInterval(() => this.send({ type: "ping", t: Math.round(performance.now()) }), PING_MS);
  }

  start(): void {
    this.ended = false;
    this.onLink("connecting", "");
    const scheme = location.protocol === "https:" ? "wss" : "ws";
    const socket = new WebSocket(`${scheme}://${location.host}/v1/character/stream`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    socket.onopen = () => {
      const first = this.memory
        ? { type: "session.resume", ...this.memory }
        : { type: "session.open", protocol: 1, token: this.token };
      socket.send(JSON.stringify(first));
    };
    socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => {
      const { message, payload } = unpack(event.data);
      this.note(message);
      this.onMessage(message, payload);
    };
    socket.onclose = () => {
      if (this.socket === socket && !this.ended) this.retry();
    };
  }

  send(message: object): void {
    if (this.socket?.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  sendEvent(message: object): string {
    const event_id = `${this.run}-${this.events++}`;
    this.send({ ...message, event_id });
    return event_id;
  }

  sendAudio(pcm: ArrayBuffer): boolean {
    const socket = this.socket;
    // Live audio that cannot leave now is worthless later.
    if (socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > 64 * 1024) return false;
    socket.send(pack({ type: "audio.append", role: "user" }, pcm));
    return true;
  }

  private note(message: ServerMessage): void {
    if (message.type === "session.ready" || message.type === "resumed") {
      this.remember({ session_id: message.session_id, resume_token: message.resume_token, last_seq: message.seq });
      this.onLink("live", "");
    } else if (message.type === "session.queued") {
      this.onLink("queued", String(message.position));
    } else if (message.type === "replaced") {
      this.finish("This conversation continues in another window.");
    } else if (message.type === "error" && (message.code === "resume_failed" || message.code === "resync_required")) {
      this.remember(null);
      this.retries = 0;
    } else if (message.type === "error" && (message.code === "unauthorized" || message.code === "character_refused")) {
      this.finish(message.message);
    } else if (message.type === "closed") {
      this.remember(null);
    } else if (this.memory && message.seq > 0) {
      this.memory.last_seq = message.seq;
      if (message.type === "media.chunk") this.retries = 0;
    }
  }

  private finish(reason: string): void {
    this.ended = true;
    this.remember(null);
    this.onLink("ended", reason);
  }

  private retry(): void {
    if (this.memory) this.remember(this.memory);
    const wait = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.retries) * (0.75 + Math.random() / 2);
    if (this.retries > 0) this.onLink("lost", "");
    this.retries += 1;
    window.setTimeout(() => this.start(), this.retries === 1 ? 50 : wait);
  }

  private remember(memory: Memory | null): void {
    this.memory = memory;
    if (memory) sessionStorage.setItem(MEMORY_KEY, JSON.stringify(memory));
    else sessionStorage.removeItem(MEMORY_KEY);
  }
}

function recall(): Memory | null {
  const stored = sessionStorage.getItem(MEMORY_KEY);
  return stored ? (JSON.parse(stored) as Memory) : null;
}
