// A worker on the published Node.js SDK, moved by commands on stdin: one JSON object per line. The twin of client.py.
//
// Answers and events are lines that begin with "@"; whatever else the SDK prints is noise.

import * as iii from "iii-sdk";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";

const SdkError = iii.InvocationError ?? iii.IIIInvocationError; // the name before 0.21
const say = (message) => process.stdout.write(`@${JSON.stringify(message)}\n`);
const name = process.argv[2];
const worker = iii.registerWorker(process.env.III_URL, { workerName: name });
const functions = new Map();
const held = new Map();
const triggers = new Map();
const providers = new Map();

const behaviours = {
  echo: (data, metadata) => ({ echo: data, metadata: metadata ?? null }),
  none: () => undefined,
  boom: () => {
    throw new Error("boom \u{1F4A5}");
  },
  who: () => ({ name, pid: process.pid }),
  blob: (data) => ({ blob: "y".repeat(data.size) }),
  length: (data) => ({ length: data.blob.length }),
  nested: async (data) => ({ nested: await worker.trigger(data.request) }),
};

function handlerOf(behaviour, functionId, seconds) {
  if (behaviour === "record") {
    return async (data, metadata) => {
      say({ event: "invoked", function_id: functionId, data, metadata: metadata ?? null });
    };
  }
  if (behaviour === "slow") {
    return async () => {
      say({ event: "started", function_id: functionId });
      await sleep(seconds * 1000);
      return "late";
    };
  }
  if (behaviour === "held") {
    const released = new Promise((resolve) => held.set(functionId, resolve));
    return async () => {
      await released;
      return "late";
    };
  }
  return async (data, metadata) => behaviours[behaviour](data, metadata);
}

const operations = {
  function({ function_id, behaviour, seconds = 0, ...options }) {
    functions.set(function_id, worker.registerFunction(function_id, handlerOf(behaviour, function_id, seconds), options));
  },
  unregister({ function_id }) {
    functions.get(function_id).unregister();
  },
  release({ function_id }) {
    held.get(function_id)();
  },
  async call({ function_id, void: isVoid, size, measure, timeout_ms, payload, metadata }) {
    const request = { function_id, payload: size === undefined ? payload : { blob: "x".repeat(size) }, metadata };
    if (timeout_ms !== undefined) request.timeoutMs = timeout_ms;
    if (isVoid) request.action = iii.TriggerAction.Void();
    const result = await worker.trigger(request);
    return measure ? result.blob.length : result;
  },
  provide({ type }) {
    const bound = new Map();
    providers.set(type, bound);
    worker.registerTriggerType(
      { id: type, description: "a test's" },
      {
        async registerTrigger({ id, function_id, config, metadata = null }) {
          if (config?.refuse) throw new Error("refused");
          bound.set(id, { function_id, metadata });
          say({ event: "bound", type, function_id, config, metadata });
        },
        async unregisterTrigger({ id }) {
          const function_id = bound.get(id)?.function_id ?? null;
          bound.delete(id);
          say({ event: "unbound", type, function_id });
        },
      },
    );
  },
  async fire({ type, payload }) {
    for (const { function_id, metadata } of providers.get(type).values()) {
      await worker.trigger({ function_id, payload, metadata: metadata ?? undefined, action: iii.TriggerAction.Void() });
    }
  },
  bind({ handle, ...trigger }) {
    triggers.set(handle, worker.registerTrigger(trigger));
  },
  unbind({ handle }) {
    triggers.get(handle).unregister();
  },
  // 0.11 forwards no metadata: neither the caller's request nor the handler knows it.
  about: () => ({ has_metadata: worker.trigger.toString().includes("metadata"), pid: process.pid }),
};

async function execute({ id, op, ...args }) {
  try {
    say({ id, ok: (await operations[op](args)) ?? null });
  } catch (error) {
    const { code, function_id, stacktrace } = error;
    const type = error.constructor.name === "Error" ? error.name : error.constructor.name;
    say({ id, error: { sdk_error: error instanceof SdkError, type, code, message: error.message, function_id, stacktrace } });
  }
}

async function leave() {
  await worker.shutdown();
  process.exit(0);
}

process.on("SIGTERM", leave);
createInterface({ input: process.stdin }).on("line", (line) => execute(JSON.parse(line))).on("close", leave);
say({ event: "ready" });
