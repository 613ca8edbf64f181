// node ai_sdk.js URL MODEL QUESTION [stream]
const { generateText, streamText } = require("ai");
const { createOpenAICompatible } = require("@ai-sdk/openai-compatible");
const [url, name, prompt, stream] = process.argv.slice(2);
(async () => {
  const course = createOpenAICompatible({ name: "course", baseURL: url });
  const model = course(name);
  if (!stream) process.stdout.write((await generateText({ model, prompt })).text);
  else
    for await (const text of streamText({ model, prompt }).textStream)
      process.stdout.write(text);
})();
