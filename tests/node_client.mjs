// The official Node client against the platform at OPENAI_BASE_URL: prints one line a resource.
import OpenAI, { toFile } from "openai";
import assert from "node:assert/strict";

const client = new OpenAI({ maxRetries: 0 });
const model = "rftkit-tiny";
const row = { messages: [{ role: "user", content: "copy: abc" }], answer: "abc" };
const grader = {
  type: "string_check", name: "exact", operation: "eq",
  input: "{{sample.output_text}}", reference: "{{item.answer}}",
};
const upload = async () =>
  client.files.create({
    file: await toFile(Buffer.from(JSON.stringify(row) + "\n"), "rows.jsonl"),
    purpose: "fine-tune",
  });
const all = async (pages) => { const found = []; for await (const each of pages) found.push(each); return found; };

const file = await upload();
assert.equal((await client.files.retrieve(file.id)).filename, "rows.jsonl");
assert.equal(await (await client.files.content(file.id)).text(), JSON.stringify(row) + "\n");
assert.ok((await all(client.files.list())).some((each) => each.id === file.id));
console.log("files");

const job = await client.fineTuning.jobs.create({
  model, training_file: file.id, validation_file: file.id, metadata: { from: "node" },
  method: { type: "reinforcement", reinforcement: { grader, hyperparameters: { n_epochs: 1 } } },
});
assert.ok((await all(client.fineTuning.jobs.list({ metadata: { from: "node" } }))).some((each) => each.id === job.id));
let now = job;
for (let i = 0; i < 600 && !["succeeded", "failed", "cancelled"].includes(now.status); i++) {
  await new Promise((wake) => setTimeout(wake, 200));
  now = await client.fineTuning.jobs.retrieve(job.id);
}
assert.equal(now.status, "succeeded", JSON.stringify(now.error));
const events = await all(client.fineTuning.jobs.listEvents(job.id));
assert.ok(events.some((each) => each.type === "metrics"));
const [checkpoint] = await all(client.fineTuning.jobs.checkpoints.list(job.id));
assert.equal(checkpoint.fine_tuned_model_checkpoint, now.fine_tuned_model);
await assert.rejects(() => client.fineTuning.jobs.pause(job.id), OpenAI.BadRequestError);
console.log("jobs");

const run = await client.fineTuning.alpha.graders.run({ grader, model_sample: "abc", item: row });
assert.equal(run.reward, 1);
await client.fineTuning.alpha.graders.validate({ grader });
console.log("graders");

const record = await client.evals.create({
  data_source_config: { type: "custom", item_schema: { type: "object" } }, testing_criteria: [grader],
});
let evalRun = await client.evals.runs.create(record.id, {
  data_source: {
    type: "jsonl",
    source: { type: "file_content", content: [{ item: row, sample: { output_text: "abc" } }] },
  },
});
for (let i = 0; i < 300 && evalRun.status !== "completed"; i++) {
  await new Promise((wake) => setTimeout(wake, 100));
  evalRun = await client.evals.runs.retrieve(evalRun.id, { eval_id: record.id });
}
assert.equal(evalRun.result_counts.passed, 1);
const items = await all(client.evals.runs.outputItems.list(evalRun.id, { eval_id: record.id }));
assert.equal(items[0].status, "pass");
const stepRuns = await all(client.evals.runs.list(now.eval_id));
assert.equal(stepRuns[0].name, "Step 0");
console.log("evals");

const messages = [{ role: "user", content: "copy: abc" }];
const chat = await client.chat.completions.create({ model: now.fine_tuned_model, messages, max_completion_tokens: 4 });
assert.equal(chat.choices.length, 1);
let text = "";
for await (const chunk of await client.chat.completions.create({ model, messages, max_completion_tokens: 4, seed: 1, stream: true }))
  text += chunk.choices[0]?.delta?.content ?? "";
const again = await client.chat.completions.create({ model, messages, max_completion_tokens: 4, seed: 1 });
assert.equal(text, again.choices[0].message.content);
console.log("chat");

const response = await client.responses.create({ model, input: "copy: abc", max_output_tokens: 4 });
assert.equal((await client.responses.retrieve(response.id)).output_text, response.output_text);
console.log("responses");

assert.ok((await all(client.models.list())).some((each) => each.id === now.fine_tuned_model));
assert.equal((await client.embeddings.create({ model, input: ["a", "b"] })).data.length, 2);
await assert.rejects(() => client.models.retrieve("none"), OpenAI.NotFoundError);
console.log("models");
