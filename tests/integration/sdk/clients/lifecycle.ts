// The samples of the page on worker lifecycle (seed 003), as they stand there, in one program.
import { registerWorker } from "iii-sdk";
import { IIIInvocationError } from "iii-sdk";

const url = process.env.III_URL;
if (!url) throw new Error("III_URL must be set");
const worker = registerWorker(url, {
  workerName: "my-worker",
});

worker.registerFunction(
  "discovery::on-workers",
  async (data: { event: string; worker_id: string }) => {
    if (data.event === "worker_connected") {
      console.log(`joined ${data.worker_id}`);
    }
  },
);
worker.registerTrigger({
  type: "engine::workers-available",
  function_id: "discovery::on-workers",
  config: {},
});

worker.registerFunction(
  "discovery::on-functions",
  async (data: { event: string; functions: { function_id: string }[] }) => {
    const ids = data.functions.map((f) => f.function_id);
    console.log(`functions ${ids.join(" ")}`);
  },
);
worker.registerTrigger({
  type: "engine::functions-available",
  function_id: "discovery::on-functions",
  config: {},
});

const { workers } = await worker.trigger({
  function_id: "engine::workers::list",
  payload: {},
});
const { functions } = await worker.trigger({
  function_id: "engine::functions::list",
  payload: { include_internal: false },
});
const { triggers } = await worker.trigger({
  function_id: "engine::triggers::list",
  payload: { include_internal: false },
});
const { trigger_types } = await worker.trigger({
  function_id: "engine::trigger-types::list",
  payload: { include_internal: false },
});
console.log(`lists ${[workers, functions, triggers, trigger_types].map((list) => Array.isArray(list))}`);

async function add() {
  try {
    const result = await worker.trigger({
      function_id: "math::add",
      payload: { a: 1, b: 2 },
    });
  } catch (err) {
    if (err instanceof IIIInvocationError && err.code === "invocation_stopped") {
      console.log("stopped");
      return;
    }
    throw err;
  }
}

process.on("SIGTERM", async () => {
  await worker.shutdown();
  process.exit(0);
});

await add();
