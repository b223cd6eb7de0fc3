// The microphone as 24 kHz PCM16 packets.

import { RATE } from "./protocol";

export class Microphone {
  private context: AudioContext | null = null;
  private stream: MediaStream | null = null;

  constructor(private readonly onPacket: (pcm: ArrayBuffer, peak: number) => void) {}

  get on(): boolean {
    return this.context !== null;
  }

  async start(): Promise<void> {
    const stream = await navigator.mediaDevices.getUserMedia({
      audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 },
    });
    const context = new AudioContext({ sampleRate: RATE, latencyHint: "interactive" });
    await context.audioWorklet.addModule("./microphone-worklet.js");
    const capture = new AudioWorkletNode(context, "microphone-capture", { numberOfOutputs: 0 });
    capture.port.onmessage = (event: MessageEvent<{ pcm: ArrayBuffer; peak: number }>) =>
      this.onPacket(event.data.pcm, event.data.peak);
    context.createMediaStreamSource(stream).connect(capture);
    await context.resume();
    this.context = context;
    this.stream = stream;
  }

  async stop(): Promise<void> {
    this.stream?.getTracks().forEach((track) => track.stop());
    await this.context?.close();
    this.context = null;
    this.stream = null;
  }
}
