// Converts microphone samples to 24 kHz PCM16 packets of 40 ms. Runs on the audio thread; linear interpolation is good
// enough for speech, and the usual case (the context itself runs at 24 kHz) is a plain copy.
const RATE = 24000;
const PACKET = 960;

class MicrophoneCapture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.packet = new Int16Array(PACKET);
    this.filled = 0;
    this.phase = 0;
    this.last = 0;
    this.peak = 0;
  }

  process(inputs) {
    const channel = inputs[0]?.[0];
    if (channel) {
      const step = sampleRate / RATE;
      while (this.phase < channel.length) {
        const at = Math.floor(this.phase);
        const before = at === 0 ? this.last : channel[at - 1];
        const value = before + (channel[at] - before) * (this.phase - at);
        this.push(step === 1 ? channel[at] : value);
        this.phase += step;
      }
      this.phase -= channel.length;
      this.last = channel[channel.length - 1];
    }
    return true;
  }

  push(value) {
    const clipped = Math.max(-1, Math.min(1, value));
    this.peak = Math.max(this.peak, Math.abs(clipped));
    this.packet[this.filled++] = Math.round(clipped * 32767);
    if (this.filled === PACKET) {
      this.port.postMessage({ pcm: this.packet.buffer, peak: this.peak }, [this.packet.buffer]);
      this.packet = new Int16Array(PACKET);
      this.filled = 0;
      this.peak = 0;
    }
  }
}

registerProcessor("microphone-capture", MicrophoneCapture);
