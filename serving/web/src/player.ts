// Media Source player that stays close to the live edge: small buffer, gentle speed changes, a seek when far behind.

import { RATE } from "./protocol";

const MIN_TARGET_S = 0.28;
const MAX_TARGET_S = 0.9;
const SEEK_S = 0.6;
const RETAIN_S = 12;

export class Player {
  private source: MediaSource | null = null;
  private buffer: SourceBuffer | null = null;
  private queue: Uint8Array<ArrayBuffer>[] = [];
  private seekTo: number | null = null;
  private target = MIN_TARGET_S;
  private lastStall = 0;
  private silenced = false;
  private audioOn = false;

  constructor(readonly video: HTMLVideoElement) {
    video.addEventListener("waiting", () => this.stalled());
    document.addEventListener("visibilitychange", () => {
      if (!document.hidden) this.toEdge();
    });
    window.setInterval(() => this.steer(), 100);
  }

  // Starts a stream, or restarts it after a reconnect: playback seeks to `ptsSamples`.
  async begin(mime: string, init: Uint8Array<ArrayBuffer>, ptsSamples: number): Promise<void> {
    this.queue = [init];
    this.seekTo = ptsSamples / RATE;
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

  // Seconds of media between the playback position and the end of the buffer.
  get lag(): number {
    const end = this.end;
    return end === null ? 0 : Math.max(0, end - this.video.currentTime);
  }

  get playedSamples(): number {
    return Math.max(0, Math.round(this.video.currentTime * RATE));
  }

  get unmuted(): boolean {
    return this.audioOn;
  }

  setUnmuted(on: boolean): void {
    this.audioOn = on;
    this.applyMute();
    this.play();
  }

  // Mutes at once, until the stream itself is silent after an interruption.
  silence(): void {
    this.silenced = true;
    this.applyMute();
  }

  endSilence(ptsSamples?: number): void {
    if (!this.silenced) return;
    this.silenced = false;
    if (ptsSamples !== undefined) this.seekTo = ptsSamples / RATE;
    this.applyMute();
  }

  private applyMute(): void {
    this.video.muted = !this.audioOn || this.silenced;
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
    const stale = this.video.currentTime - RETAIN_S;
    if (buffer.buffered.length > 0 && stale - buffer.buffered.start(0) > RETAIN_S) buffer.remove(0, stale);
    this.steer();
  }

  private steer(): void {
    const end = this.end;
    if (end === null) return;
    if (this.seekTo !== null) {
      if (end - this.seekTo < this.target) return;
      this.video.currentTime = this.seekTo;
      this.seekTo = null;
      this.play();
    }
    const ahead = end - this.video.currentTime;
    if (ahead > this.target + SEEK_S) {
      this.toEdge();
      return;
    }
    this.video.playbackRate = ahead > this.target + 0.15 ? 1.06 : ahead < this.target - 0.16 ? 0.96 : 1;
    if (performance.now() - this.lastStall > 20000) this.target = Math.max(MIN_TARGET_S, this.target - 0.001);
    if (this.video.paused && ahead > this.target) this.play();
  }

  private stalled(): void {
    if (this.seekTo !== null || this.end === null) return;
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
      // A browser that blocks audio before a gesture still plays muted video.
      this.audioOn = false;
      this.applyMute();
      void this.video.play().catch((reason: unknown) => console.warn("playback needs a user gesture", reason));
    });
  }
}
