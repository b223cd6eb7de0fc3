// Media Source player that stays close to the live edge: small buffer, gentle speed changes, a jump when far behind.

import { RATE } from "./protocol";

const MIN_TARGET_S = 0.28;
const MAX_TARGET_S = 0.9;
const JUMP_S = 0.6;
const KEEP_S = 12;

export class Player {
  private source: MediaSource | null = null;
  private buffer: SourceBuffer | null = null;
  private queue: Uint8Array<ArrayBuffer>[] = [];
  private jumpTo: number | null = null;
  private target = MIN_TARGET_S;
  private lastStall = 0;
  private hushed = false;
  private voiceOn = false;

  constructor(readonly video: HTMLVideoElement) {
    video.addEventListener("waiting", () => this.stalled());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.toEdge();
    });
    window.setInterval(() => this.steer(), 100);
  }

  // A stream begins here, or begins again after a reconnect: playback jumps to `ptsSamples`.
  async begin(mime: string, init: Uint8Array<ArrayBuffer>, ptsSamples: number): Promise<void> {
    this.queue = [init];
    this.jumpTo = ptsSamples / RATE;
    if (this.buffer && this.source?.readyState === "open" && !this.video.error) {
      this.pump();
      return;
    }
    if (!MediaSource.isTypeSupported(mime)) throw new Error(`this browser cannot play ${mime}`);
    const source = new MediaSource();
    this.source = source;
    this.buffer = null;
    this.video.src = URL.createObjectURL(source);
    await new Promise((resolve) => source.addEventListener("sourceopen", resolve, { once: true }));
    URL.revokeObjectURL(this.video.src);
    source.duration = Number.POSITIVE_INFINITY;
    this.buffer = source.addSourceBuffer(mime);
    this.buffer.mode = "segments";
    this.buffer.addEventListener("updateend", () => this.pump());
    this.pump();
  }

  append(segment: Uint8Array<ArrayBuffer>): void {
    this.queue.push(segment);
    this.pump();
  }

  // Seconds of media between what is seen and what has arrived.
  get lag(): number {
    const end = this.end;
    return end === null ? 0 : Math.max(0, end - this.video.currentTime);
  }

  get playedSamples(): number {
    return Math.max(0, Math.round(this.video.currentTime * RATE));
  }

  get soundOn(): boolean {
    return this.voiceOn;
  }

  setSound(on: boolean): void {
    this.voiceOn = on;
    this.applySound();
    this.play();
  }

  // Silent at once, until the stream carries the interrupted state.
  hush(): void {
    this.hushed = true;
    this.applySound();
  }

  unhush(ptsSamples?: number): void {
    if (!this.hushed) return;
    this.hushed = false;
    if (ptsSamples !== undefined) this.jumpTo = ptsSamples / RATE;
    this.applySound();
  }

  private applySound(): void {
    this.video.muted = !this.voiceOn || this.hushed;
  }

  private get end(): number | null {
    const ranges = this.buffer?.buffered;
    return ranges && ranges.length > 0 ? ranges.end(ranges.length - 1) : null;
  }

  private pump(): void {
    const buffer = this.buffer;
    if (!buffer || buffer.updating || this.source?.readyState !== "open") return;
    const next = this.queue.shift();
    if (next) {
      buffer.appendBuffer(next);
      return;
    }
    const stale = this.video.currentTime - KEEP_S;
    if (buffer.buffered.length > 0 && stale - buffer.buffered.start(0) > KEEP_S) buffer.remove(0, stale);
    this.steer();
  }

  private steer(): void {
    const end = this.end;
    if (end === null) return;
    if (this.jumpTo !== null) {
      if (end - this.jumpTo < this.target) return;
      this.video.currentTime = this.jumpTo;
      this.jumpTo = null;
      this.play();
    }
    const ahead = end - this.video.currentTime;
    if (ahead > this.target + JUMP_S) {
      this.toEdge();
      return;
    }
    this.video.playbackRate = ahead > this.target + 0.15 ? 1.06 : ahead < this.target - 0.16 ? 0.96 : 1;
    if (performance.now() - this.lastStall > 20000) this.target = Math.max(MIN_TARGET_S, this.target - 0.001);
    if (this.video.paused && ahead > this.target) this.play();
  }

  private stalled(): void {
    if (this.jumpTo !== null || this.end === null) return;
    this.lastStall = performance.now();
    this.target = Math.min(MAX_TARGET_S, this.target + 0.06);
  }

  private toEdge(): void {
    const end = this.end;
    if (end !== null) this.video.currentTime = Math.max(0, end - this.target);
    this.play();
  }

  private play(): void {
    this.video.play().catch(() => {
      // A browser that refuses sound before a gesture still plays the picture.
      this.voiceOn = false;
      this.applySound();
      void this.video.play().catch((reason: unknown) => console.warn("playback waits for a gesture", reason));
    });
  }
}
