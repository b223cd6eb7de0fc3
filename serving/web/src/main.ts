// The page: a live character that listens to the microphone and speaks typed text, both at the same time.

import { Connection } from "./connection";
import { LatencyMeter } from "./latency";
import { Microphone } from "./microphone";
import { Player } from "./player";
import { RATE, type CharacterState, type ServerMessage } from "./protocol";

function element<T extends HTMLElement>(id: string): T {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as T;
}

const TOKEN_KEY = "lpm-token";

function sessionToken(): string {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN_KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return given ?? sessionStorage.getItem(TOKEN_KEY) ?? "";
}

const video = element<HTMLVideoElement>("video");
const textBox = element<HTMLInputElement>("text");
const voiceBox = element<HTMLSelectElement>("voice");
const micButton = element<HTMLButtonElement>("mic");
const stopButton = element<HTMLButtonElement>("interrupt");
const audioButton = element<HTMLButtonElement>("audio");
const banner = element("banner");
const bannerAction = element<HTMLButtonElement>("banner-action");
const caption = element("caption");

const player = new Player(video);
const connection = new Connection(sessionToken());
const latency = new LatencyMeter();
const spokenText = new Map<string, string>();
const openSegments = new Set<string>();
let audioChosen = false;
let computeRatio: number | null = null;
let live = false;

const microphone = new Microphone((pcm, peak) => {
  micButton.style.setProperty("--level", String(Math.min(1, peak * 1.6)));
  const samples = pcm.byteLength / 2;
  if (live && connection.sendAudio(pcm)) latency.recordSent(samples);
});

function showBanner(text: string, action?: { label: string; run: () => void }): void {
  banner.hidden = text === "";
  element("banner-text").textContent = text;
  bannerAction.hidden = !action;
  if (action) {
    bannerAction.textContent = action.label;
    bannerAction.onclick = action.run;
  }
}

function hint(text: string): void {
  element("hint").textContent = text;
}

function showState(state: CharacterState | "connecting" | "waiting"): void {
  element("state").dataset.state = state;
  element("state-text").textContent = state;
}

function showMute(): void {
  audioButton.setAttribute("aria-pressed", String(player.unmuted));
  element("audio-text").textContent = player.unmuted ? "Audio on" : "Tap to unmute";
}

// The first deliberate action on the page unmutes the voice; after that the choice is the user's.
function firstGesture(): void {
  if (audioChosen) return;
  audioChosen = true;
  player.setUnmuted(true);
  showMute();
}

function showSegments(): void {
  stopButton.disabled = openSegments.size === 0;
  if (openSegments.size === 0) caption.textContent = "";
}

function interrupt(): void {
  if (openSegments.size === 0) return;
  player.silence();
  window.setTimeout(() => player.endSilence(), 2000);
  connection.sendEvent({ type: "interrupt", reason: "user", played_samples: player.playedSamples });
}

function onReady(message: Extract<ServerMessage, { type: "session.ready" }>): void {
  element("character").textContent = message.character_name;
  document.title = `${message.character_name} - live character`;
  element("disclosure-text").textContent = message.disclosure;
  textBox.maxLength = message.limits.max_text_chars;
  const chosen = voiceBox.value;
  voiceBox.replaceChildren(...message.voices.map((name) => new Option(name, name, false, name === chosen)));
  latency.reset();
  openSegments.clear();
  showSegments();
}

function onChunk(message: Extract<ServerMessage, { type: "media.chunk" }>, payload: Uint8Array<ArrayBuffer>): void {
  player.append(payload);
  if (message.state !== "speaking") player.endSilence(message.pts_samples);
  const ratio = message.compute_ms / ((message.duration_samples / RATE) * 1000);
  computeRatio = computeRatio === null ? ratio : computeRatio * 0.9 + ratio * 0.1;
  const endsAt = (message.pts_samples + message.duration_samples) / RATE;
  if (microphone.on) latency.recordConsumed(message.user_samples, Math.max(0, endsAt - video.currentTime) * 1000);
}

connection.onMessage = (message, payload) => {
  switch (message.type) {
    case "session.ready":
      onReady(message);
      break;
    case "resumed":
      latency.reset();
      showState(message.state);
      break;
    case "media.init":
      player.begin(message.mime, payload, message.pts_samples).catch((reason: unknown) => showBanner(String(reason)));
      break;
    case "media.chunk":
      onChunk(message, payload);
      break;
    case "state":
      showState(message.state);
      break;
    case "segment.opened":
      openSegments.add(message.segment_id);
      showSegments();
      break;
    case "playback.started":
      caption.textContent = spokenText.get(message.segment_id) ?? "";
      hint("");
      break;
    case "playback.finished":
      openSegments.delete(message.segment_id);
      spokenText.delete(message.segment_id);
      showSegments();
      break;
    case "going_away":
      showBanner("The server is restarting. The conversation will reconnect automatically.");
      break;
    case "error":
      hint(message.message);
      break;
    default:
      break;
  }
};

connection.onLink = (link, detail) => {
  live = link === "live";
  document.body.dataset.link = link;
  if (link === "live") {
    showBanner("");
    showState("idle");
  } else if (link === "connecting") {
    showState("connecting");
  } else if (link === "queued") {
    showState("waiting");
    showBanner(`Another conversation is in progress. You are number ${detail} in the queue.`);
  } else if (link === "lost") {
    showBanner("Connection lost. Reconnecting...");
  } else {
    const resume = { label: "Continue here", run: () => connection.start() };
    showBanner(detail, resume);
  }
};

element<HTMLFormElement>("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = textBox.value.trim();
  if (!text) return;
  firstGesture();
  const segment_id = `page-${crypto.getRandomValues(new Uint32Array(1))[0]?.toString(36)}`;
  spokenText.set(segment_id, text);
  connection.sendEvent({ type: "text.speak", text, voice: voiceBox.value || undefined, segment_id });
  textBox.value = "";
  hint("Synthesizing speech...");
});

micButton.addEventListener("click", async () => {
  firstGesture();
  try {
    await (microphone.on ? microphone.stop() : microphone.start());
    hint("");
  } catch (reason) {
    hint(`Cannot use the microphone: ${reason instanceof Error ? reason.message : String(reason)}`);
  }
  micButton.setAttribute("aria-pressed", String(microphone.on));
  micButton.style.setProperty("--level", "0");
});

stopButton.addEventListener("click", interrupt);

audioButton.addEventListener("click", () => {
  audioChosen = true;
  player.setUnmuted(!player.unmuted);
  showMute();
});

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") interrupt();
  const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
  if (event.key.toLowerCase() === "m" && !typing && !event.ctrlKey && !event.metaKey) micButton.click();
});

video.addEventListener("playing", () => {
  element("curtain").hidden = true;
});

// Statistics: presented frames per second, latency, and the fraction of real time that the model needs.
let frames = 0;
let shownFrames = 0;
let since = performance.now();

function countFrame(): void {
  frames += 1;
  shownFrames += 1;
  document.body.dataset.frames = String(shownFrames);
  if (shownFrames === 2) document.body.dataset.movingAfterMs = performance.now().toFixed(0);
  video.requestVideoFrameCallback(countFrame);
}

video.requestVideoFrameCallback(countFrame);
window.setInterval(() => {
  const now = performance.now();
  element("fps").textContent = `${((frames * 1000) / (now - since)).toFixed(0)} fps`;
  frames = 0;
  since = now;
  const fromMicrophone = microphone.on ? latency.milliseconds : null;
  const shown = fromMicrophone ?? player.lag * 1000;
  element("latency").textContent = `${Math.round(shown)} ms`;
  element("latency").title = fromMicrophone === null ? "playback delay behind the server" : "from microphone to video";
  if (live && !video.paused) connection.send({ type: "playback.ack", played_samples: player.playedSamples });
  if (computeRatio !== null) element("compute").textContent = `${Math.round(computeRatio * 100)}% of real time`;
}, 1000);

connection.start();
