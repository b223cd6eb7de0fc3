// Latency from microphone to video: when was the audio sent that the current frame reacts to?

const MAX_PACKETS = 512;

export class LatencyMeter {
  private sent: { samples: number; at: number }[] = [];
  private total = 0;
  private smooth: number | null = null;

  // The server counts the samples it received; a resumed or new session restarts the count.
  reset(): void {
    this.sent = [];
    this.total = 0;
    this.smooth = null;
  }

  recordSent(samples: number): void {
    this.total += samples;
    this.sent.push({ samples: this.total, at: performance.now() });
    if (this.sent.length > MAX_PACKETS) this.sent.shift();
  }

  // `consumed`: user samples that the model consumed by the chunk's end; `untilShownMs`: time until that end is on screen.
  recordConsumed(consumed: number, untilShownMs: number): void {
    const packet = this.sent.find((entry) => entry.samples >= consumed);
    if (!packet || performance.now() - packet.at > 5000) {
      this.smooth = null;
      return;
    }
    const value = performance.now() - packet.at + untilShownMs;
    this.smooth = this.smooth === null ? value : this.smooth * 0.85 + value * 0.15;
  }

  get milliseconds(): number | null {
    return this.smooth;
  }
}
