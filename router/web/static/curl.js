// The request as a shell command, from what a trace has: no key, and a place for the words, which were not recorded.

/** One word of a shell, whatever is in it: quoted, and without control characters that a terminal would obey. */
export function quoted(text) {
  return `'${String(text).replace(/[\u0000-\u001f\u007f-\u009f]/g, " ").replaceAll("'", "'\\''")}'`;
}

export function command(trace) {
  const facts = trace.facts ?? {};
  const lines = [`curl "$ANTHROPIC_BASE_URL"${quoted(trace.path || "/v1/messages")}`];
  if (trace.method && trace.method !== "POST") lines[0] += ` -X ${quoted(trace.method)}`;
  lines.push(`-H "x-api-key: $ANTHROPIC_API_KEY"`, `-H 'anthropic-version: 2023-06-01'`);
  if (Array.isArray(facts.betas) && facts.betas.length) lines.push(`-H ${quoted(`anthropic-beta: ${facts.betas.join(",")}`)}`);
  if (trace.endpoint === "messages" || trace.endpoint === "count_tokens") {
    const body = { model: trace.model_asked };
    if (trace.endpoint === "messages") body.max_tokens = Number.isInteger(facts.max_tokens) ? facts.max_tokens : 1024;
    if (trace.is_streaming) body.stream = true;
    body.messages = [{ role: "user", content: "THE WORDS ARE NOT RECORDED" }];
    lines.push(`-H 'content-type: application/json'`, `-d ${quoted(JSON.stringify(body))}`);
  }
  return lines.join(" \\\n  ");
}
