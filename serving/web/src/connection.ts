// A WebSocket that opens a session, resumes it after a lost connection, and gives up only when the server ends it.

import { pack, unpack, type ServerMessage } from "./protocol";

interface StoredSession {
  session_id: string;
  resume_token: string;
  last_seq: number;
}

export type Link = "connecting" | "live" | "queued" | "lost" | "ended";

const STORAGE_KEY = "lpm-session";
const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 8000;
const PING_MS = 15000;

export class Connection {
  onMessage: (message: ServerMessage, payload: Uint8Array<ArrayBuffer>) => void = () => {};
  onLink: (link: Link, detail: string) => void = () => {};

  private socket: WebSocket | null = null;
  private stored: StoredSession | null = loadSession();
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
      const first = this.stored
        ? { type: "session.resume", ...this.stored }
        : { type: "session.open", protocol: 1, token: this.token };
      socket.send(JSON.stringify(first));
    };
    socket.onmessage = (event: MessageEvent<string | ArrayBuffer>) => {
      const { message, payload } = unpack(event.data);
      this.track(message);
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
    // Live audio that cannot be sent now is useless later.
    if (socket?.readyState !== WebSocket.OPEN || socket.bufferedAmount > 64 * 1024) return false;
    socket.send(pack({ type: "audio.append", role: "user" }, pcm));
    return true;
  }

  private track(message: ServerMessage): void {
    if (message.type === "session.ready" || message.type === "resumed") {
      this.store({ session_id: message.session_id, resume_token: message.resume_token, last_seq: message.seq });
      this.onLink("live", "");
    } else if (message.type === "session.queued") {
      this.onLink("queued", String(message.position));
    } else if (message.type === "replaced") {
      this.finish("This conversation continues in another window.");
    } else if (message.type === "error" && (message.code === "resume_failed" || message.code === "resync_required")) {
      this.store(null);
      this.retries = 0;
    } else if (message.type === "error" && (message.code === "unauthorized" || message.code === "character_refused")) {
      this.finish(message.message);
    } else if (message.type === "closed") {
      this.store(null);
    } else if (this.stored && message.seq > 0) {
      this.stored.last_seq = message.seq;
      if (message.type === "media.chunk") this.retries = 0;
    }
  }

  private finish(reason: string): void {
    this.ended = true;
    this.store(null);
    this.onLink("ended", reason);
  }

  private retry(): void {
    if (this.stored) this.store(this.stored);
    const delay = Math.min(LAST_RETRY_MS, FIRST_RETRY_MS * 2 ** this.retries) * (0.75 + Math.random() / 2);
    if (this.retries > 0) this.onLink("lost", "");
    this.retries += 1;
    window.setTimeout(() => this.start(), this.retries === 1 ? 50 : delay);
  }

  private store(session: StoredSession | null): void {
    this.stored = session;
    if (session) sessionStorage.setItem(STORAGE_KEY, JSON.stringify(session));
    else sessionStorage.removeItem(STORAGE_KEY);
  }
}

function loadSession(): StoredSession | null {
  const stored = sessionStorage.getItem(STORAGE_KEY);
  return stored ? (JSON.parse(stored) as StoredSession) : null;
}
