// From the microphone to the picture: when was the audio sent that the picture now shown has heard?

const KEEP = 512;

export class LatencyMeter {
  private sent: { samples: number; at: number }[] = [];
  private total = 0;
  private smooth: number | null = null;

  // The server counts what it received; a resumed or new session starts this count again.
  reset(): void {
    this.sent = [];
    this.total = 0;
    this.smooth = null;
  }

  noteSent(samples: number): void {
    this.total += samples;
    this.sent.push({ samples: this.total, at: performance.now() });
    if (this.sent.length > KEEP) this.sent.shift();
  }

  // `heard`: user samples the chunk's model has passed; `untilShownMs`: until that chunk's end is on screen.
  noteHeard(heard: number, untilShownMs: number): void {
    const packet = this.sent.find((entry) => entry.samples >= heard);
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
