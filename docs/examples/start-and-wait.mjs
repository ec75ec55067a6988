// Starts a recording over AMQP and waits for its result.
//
//   AMQP_URL=amqp://user:password@host:5672/ node start-and-wait.mjs request.json
//
// `request.json` is the body of a start; `-` reads it from the standard input. The program prints the data of session-accepted,
// and of session-finished when the session is over. It ends with 1 if the start was refused, with 2 without an answer.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import amqp from "amqplib";

const ANSWER_LIMIT_MS = 30_000;
const exchange = process.env.AMQP_PREFIX || "recorder";
const source = process.argv[2] ?? "-";
const request = readFileSync(source === "-" ? 0 : source);

const connection = await amqp.connect(process.env.AMQP_URL, { heartbeat: 10 });
const channel = await connection.createConfirmChannel();
await channel.checkExchange(exchange);

// Subscribe before publishing. This queue ends with the connection. An application that must not miss a later result declares
// a durable queue with a name of its own: { durable: true, arguments: { "x-queue-type": "quorum" } }.
const { queue } = await channel.assertQueue("", { exclusive: true });
for (const type of ["session-accepted", "session-refused", "session-finished"]) {
  await channel.bindQueue(queue, exchange, `result.${type}`);
}

const eventId = randomUUID();
const seen = new Set();
let taskId = "";

function end(code, text) {
  if (text) console.error(text);
  process.exitCode = code;
  clearTimeout(unanswered);
  connection.close();
}

function take(message) {
  if (message === null) return end(3, "The queue is gone.");
  const event = JSON.parse(message.content.toString());
  // Results arrive at least once: a repeated id is the same result.
  if (seen.has(event.id)) return channel.ack(message);
  seen.add(event.id);
  channel.ack(message);
  if (event.correlationid === eventId) {
    clearTimeout(unanswered);
    console.log(JSON.stringify(event.data));
    if (event.type === "session-refused") return end(1);
    taskId = event.data.TaskId;
  } else if (event.type === "session-finished" && event.data.TaskId === taskId) {
    console.log(JSON.stringify(event.data));
    end(0);
  }
}

const unanswered = setTimeout(() => end(2, `No answer to ${eventId}; was it parked?`), ANSWER_LIMIT_MS);
channel.on("return", () => end(2, "No queue takes events."));
await channel.consume(queue, take);

// The id lets the recorder deduplicate a repeat. A persistent, confirmed message survives a restart of the broker.
channel.publish(exchange, "event.start", request, {
  messageId: eventId,
  contentType: "application/json",
  persistent: true,
  mandatory: true,
});
await channel.waitForConfirms();
