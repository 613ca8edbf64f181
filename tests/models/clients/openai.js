// node openai.js URL MODEL QUESTION [stream]
const { OpenAI } = require("openai");
const [url, model, content, stream] = process.argv.slice(2);
(async () => {
  const client = new OpenAI({ baseURL: url, apiKey: "unused" });
  const messages = [{ role: "user", content }];
  const ask = { model, messages, stream: Boolean(stream) };
  const answer = await client.chat.completions.create(ask);
  if (!stream) process.stdout.write(answer.choices[0].message.content);
  else
    for await (const chunk of answer)
      process.stdout.write(chunk.choices[0].delta.content ?? "");
})();
