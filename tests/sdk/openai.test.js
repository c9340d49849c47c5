// OpenAI's library for Node against a running Tollway, as its users call it. Run by tests/serve/test_sdks.py, which
// sets OPENAI_BASE_URL and two keys: OPENAI_API_KEY, and NARROW_KEY, which may have one call at a time.
import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";
import { LengthFinishReasonError } from "openai/error";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

const client = new OpenAI({ maxRetries: 0 });
const narrow = new OpenAI({ apiKey: process.env.NARROW_KEY, maxRetries: 0 });
const messages = [{ role: "user", content: "What is the capital of France?" }];
const ask = { model: "small", messages, max_completion_tokens: 12, temperature: 0 };
const long = { model: "small", messages, max_completion_tokens: 1000, logit_bias: { 0: -100, 2: -100 }, stream: true };
const city = z.object({ city: z.enum(["Paris", "Rome"]), people: z.number().int() });

/** The error that a call ends with. */
async function failure(call) {
  try {
    await call();
  } catch (error) {
    return error;
  }
  assert.fail("no error");
}

test("a chat completion, and what stands in its headers", async () => {
  const { data, response } = await client.chat.completions
    .create(ask, { headers: { "x-request-id": "node-whole" } })
    .withResponse();
  assert.equal(data.object, "chat.completion");
  assert.equal(data.model, "small");
  assert.ok(data.choices[0].message.content.length > 5);
  assert.ok(data.usage.completion_tokens <= 12);
  assert.equal(data._request_id, "node-whole");
  assert.equal(response.headers.get("x-model-used"), "small");
  assert.ok(Number(response.headers.get("x-credits-used")) > 0);
  assert.ok(Number(response.headers.get("openai-processing-ms")) >= 0);
});

test("a stream, chunk by chunk, is the answer in one piece", async () => {
  const whole = await client.chat.completions.create(ask);
  const stream = await client.chat.completions.create({
    ...ask,
    stream: true,
    stream_options: { include_usage: true },
  });
  let text = "";
  let last;
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    last = chunk;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, whole.usage.completion_tokens);
  assert.ok(last.usage.credits_used > 0);
});

test("the stream helper", async () => {
  const stream = client.chat.completions.stream({ ...ask, stream_options: { include_usage: true } });
  let text = "";
  stream.on("content", (delta) => (text += delta));
  const final = await stream.finalChatCompletion();
  assert.equal(final.choices[0].message.content, text);
  assert.equal((await stream.totalUsage()).completion_tokens, final.usage.completion_tokens);
});

test("parse with a zod schema", async () => {
  const format = zodResponseFormat(city, "place");
  const answer = await client.chat.completions.parse({ ...ask, max_completion_tokens: 60, response_format: format });
  const { city: name, people } = answer.choices[0].message.parsed;
  assert.ok(["Paris", "Rome"].includes(name));
  assert.ok(Number.isInteger(people));
});

test("the stream helper with a zod schema", async () => {
  const format = zodResponseFormat(city, "place");
  const stream = client.chat.completions.stream({ ...ask, max_completion_tokens: 60, response_format: format });
  const final = await stream.finalChatCompletion();
  assert.ok(["Paris", "Rome"].includes(final.choices[0].message.parsed.city));
});

test("parse that the maximum cuts short", async () => {
  const format = zodResponseFormat(z.object({ text: z.enum(["a very long text indeed, longer than this"]) }), "t");
  const call = () => client.chat.completions.parse({ ...ask, max_completion_tokens: 3, response_format: format });
  assert.ok((await failure(call)) instanceof LengthFinishReasonError);
});

test("tools: a call with parsed arguments, whole and streamed", async () => {
  const tools = [zodFunction({ name: "population", description: "How many people live in a city", parameters: city })];
  const request = { ...ask, max_completion_tokens: 80, tools, tool_choice: "required" };
  const answer = await client.chat.completions.parse(request);
  const stream = client.chat.completions.stream(request);
  const deltas = [];
  stream.on("tool_calls.function.arguments.delta", ({ arguments_delta }) => deltas.push(arguments_delta));
  const streamed = await stream.finalChatCompletion();
  for (const { choices } of [answer, streamed]) {
    assert.equal(choices[0].finish_reason, "tool_calls");
    const call = choices[0].message.tool_calls[0];
    assert.equal(call.type, "function");
    assert.equal(call.function.name, "population");
    assert.ok(["Paris", "Rome"].includes(call.function.parsed_arguments.city));
  }
  assert.ok(deltas.length > 1);
});

test("runTools calls the function, whole and streamed", async () => {
  for (const stream of [false, true]) {
    const called = [];
    const runner = client.chat.completions.runTools({
      ...ask,
      stream,
      max_completion_tokens: 80,
      tools: [
        {
          type: "function",
          function: {
            name: "population",
            description: "How many people live in a city",
            parameters: z.toJSONSchema(city, { target: "draft-7" }),
            parse: (text) => city.parse(JSON.parse(text)),
            function: (given) => {
              called.push(given.city);
              return "two million";
            },
          },
        },
      ],
      tool_choice: { type: "function", function: { name: "population" } },
    });
    await runner.done();
    assert.equal(called.length, 1);
    const result = await runner.finalFunctionToolCallResult();
    assert.equal(result, "two million");
  }
});

test("the answer to a tool's result", async () => {
  const call = { id: "call_1", type: "function", function: { name: "population", arguments: '{"city":"Paris"}' } };
  const answer = await client.chat.completions.create({
    ...ask,
    messages: [
      ...messages,
      { role: "assistant", content: null, tool_calls: [call] },
      { role: "tool", tool_call_id: "call_1", content: "two million" },
    ],
    tools: [{ type: "function", function: { name: "population", parameters: { type: "object" } } }],
    tool_choice: "none",
  });
  assert.ok(answer.choices[0].message.content.length > 0);
});

test("embeddings, which the library asks for in base64", async () => {
  const input = ["a toll road", "a motorway with a toll", "a bowl of soup"];
  const packed = await client.embeddings.create({ model: "vectors", input });
  const plain = await client.embeddings.create({ model: "vectors", input, encoding_format: "float" });
  assert.deepEqual(packed.data.map((item) => item.index), [0, 1, 2]);
  const vectors = packed.data.map((item) => Array.from(item.embedding));
  assert.equal(vectors[0].length, 384);
  plain.data.forEach((item, row) =>
    item.embedding.forEach((value, at) => assert.ok(Math.abs(value - vectors[row][at]) < 1e-6)),
  );
  const likeness = (a, b) => a.reduce((sum, value, at) => sum + value * b[at], 0);
  assert.ok(likeness(vectors[0], vectors[1]) > likeness(vectors[0], vectors[2]));
  assert.equal(packed.usage.total_tokens, packed.usage.prompt_tokens);
});

test("older completions, whole and streamed", async () => {
  const request = { model: "small", prompt: "Once upon a time", max_tokens: 8, temperature: 0 };
  const whole = await client.completions.create(request);
  assert.equal(whole.object, "text_completion");
  let text = "";
  for await (const chunk of await client.completions.create({ ...request, stream: true })) {
    text += chunk.choices[0]?.text ?? "";
  }
  assert.equal(text, whole.choices[0].text);
});

test("models: listed page by page, and one", async () => {
  const ids = [];
  for await (const model of client.models.list()) ids.push(model.id);
  assert.ok(ids.includes("small") && ids.includes("vectors"));
  assert.equal((await client.models.retrieve("small")).id, "small");
});

test("every error is of its class, with code, param and request id", async () => {
  const wrong = new OpenAI({ apiKey: "sk-nobody", maxRetries: 0 });
  const cases = [
    [() => wrong.models.list(), OpenAI.AuthenticationError, "invalid_api_key", null],
    [() => client.models.retrieve("none"), OpenAI.NotFoundError, "model_not_found", "model"],
    [() => client.chat.completions.create({ ...ask, model: "none" }), OpenAI.NotFoundError, "model_not_found", "model"],
    [
      () => client.chat.completions.create({ ...ask, stream: true, temperature: 9 }),
      OpenAI.BadRequestError,
      "invalid_value",
      "temperature",
    ],
    [
      () => client.chat.completions.create({ ...ask, frequency: 1 }),
      OpenAI.BadRequestError,
      "unsupported_parameter",
      "frequency",
    ],
  ];
  for (const [call, type, code, param] of cases) {
    const error = await failure(call);
    assert.ok(error instanceof type, `${error}`);
    assert.deepEqual([error.code, error.param], [code, param]);
    assert.ok(error.requestID);
    assert.ok(error.message.length > 10);
  }
});

test("a limit is a RateLimitError, and a retry waits for its Retry-After", async () => {
  const stream = await narrow.chat.completions.create(long);
  await stream[Symbol.asyncIterator]().next();
  const error = await failure(() => narrow.chat.completions.create(ask));
  assert.ok(error instanceof OpenAI.RateLimitError);
  assert.equal(error.code, "rate_limit_exceeded");
  const wait = Number(error.headers.get("retry-after"));
  assert.ok(wait >= 1);
  const began = performance.now();
  const retrying = narrow.withOptions({
    maxRetries: 4,
    fetch: async (...request) => {
      const response = await fetch(...request);
      if (response.status === 429) stream.controller.abort();
      return response;
    },
  });
  const answer = await retrying.chat.completions.create(ask);
  assert.equal(answer.object, "chat.completion");
  assert.ok(performance.now() - began >= wait * 1000);
});

test("a timeout is the client's own error", async () => {
  const error = await failure(() => client.chat.completions.create({ ...ask, n: 4, max_completion_tokens: 1000 }, { timeout: 400 }));
  assert.ok(error instanceof OpenAI.APIConnectionTimeoutError, `${error}`);
});

test("an abort ends a stream", async () => {
  const controller = new AbortController();
  const options = { signal: controller.signal, headers: { "x-request-id": "node-abort" } };
  let chunks = 0;
  for await (const _ of await client.chat.completions.create(long, options)) {
    if (++chunks === 5) controller.abort();
  }
  assert.ok(chunks < 50);
});

test("an abort before the first byte", async () => {
  const controller = new AbortController();
  const call = client.chat.completions.create({ ...long, stream: false }, { signal: controller.signal });
  setTimeout(() => controller.abort(), 300);
  assert.ok((await failure(() => call)) instanceof OpenAI.APIUserAbortError);
});

test("breaking out of the loop ends the stream too", async () => {
  const stream = await client.chat.completions.create(long, { headers: { "x-request-id": "node-break" } });
  for await (const _ of stream) break;
  assert.ok(stream.controller.signal.aborted);
});
