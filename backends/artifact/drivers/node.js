// A network in WebAssembly behind stdin and stdout: for each sample until the end of the file a byte, then all inputs;
// all outputs go out. Arguments: the module and a JSON description
// {name, workspace, align, ctx, ram, inputs: [bytes], outputs: [bytes], interface}.
"use strict";
const fs = require("fs");
const [file, description] = process.argv.slice(2);
const net = JSON.parse(description);

function read(bytes) {
  const data = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    let got;
    try {
      got = fs.readSync(0, data, at, bytes - at, null);
    } catch (error) {
      if (error.code === "EAGAIN") continue;
      if (error.code === "EOF") return null;
      throw error;
    }
    if (got === 0) return null;
    at += got;
  }
  return data;
}

function write(data) {
  for (let at = 0; at < data.length; ) {
    try {
      at += fs.writeSync(1, data, at, data.length - at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error;
    }
  }
}

// What the network imports: the C library's mathematics for doubles and floats, and memory functions.
let memory;
const bytes = () => new Uint8Array(memory.buffer);
const functions = {
  memcpy: (to, from, n) => (bytes().copyWithin(to, from, from + n), to),
  memmove: (to, from, n) => (bytes().copyWithin(to, from, from + n), to),
  memset: (to, value, n) => (bytes().fill(value, to, to + n), to),
  fmod: (a, b) => a % b,
  rint: (x) => {
    const low = Math.floor(x), rest = x - low;
    return rest < 0.5 || (rest === 0.5 && low % 2 === 0) ? low : low + 1;
  },
};
functions.nearbyint = functions.roundeven = functions.rint;
function imported(name) {
  if (functions[name]) return functions[name];
  const single = name.endsWith("f") ? name.slice(0, -1) : "";
  const real = functions[single] || Math[single];
  if (single && real) return (...args) => Math.fround(real(...args));
  if (Math[name]) return Math[name];
  process.stderr.write(`the network imports ${name}, which is not provided\n`);
  process.exit(89);
}

const compiled = new WebAssembly.Module(fs.readFileSync(file));
const env = {};
for (const { module, name, kind } of WebAssembly.Module.imports(compiled))
  if (module === "env" && kind === "function") env[name] = imported(name);
const instance = new WebAssembly.Instance(compiled, { env });
memory = instance.exports.memory;
let top = instance.exports.__heap_base.value;
function place(size, align = 64) {
  const at = (top + align - 1) & -align;
  top = at + size;
  const missing = top - memory.buffer.byteLength;
  if (missing > 0) memory.grow(Math.ceil(missing / 65536));
  return at;
}

const ctx = place(net.ctx), workspace = place(net.workspace), ram = place(net.ram);
const inputs = net.inputs.map((n) => place(n)), outputs = net.outputs.map((n) => place(n));
const inputTable = place(4 * inputs.length + 4), outputTable = place(4 * outputs.length + 4);
place(4096);
new Uint32Array(memory.buffer, inputTable, inputs.length).set(inputs);
new Uint32Array(memory.buffer, outputTable, outputs.length).set(outputs);

let code = instance.exports[`${net.name}_init_checked`](ctx, ram, net.ram, net.interface);
if (code !== 0) process.exit(100 + code);
while (read(1) !== null) {
  inputs.forEach((at, i) => {
    const data = read(net.inputs[i]);
    if (data === null) process.exit(92);
    bytes().set(data, at);
  });
  bytes().fill(0xff, workspace, workspace + net.workspace);
  outputs.forEach((at, i) => bytes().fill(0xff, at, at + net.outputs[i]));
  code = instance.exports[`${net.name}_run`](ctx, inputTable, outputTable, workspace);
  if (code !== 0) process.exit(110 + code);
  outputs.forEach((at, i) => write(Buffer.from(memory.buffer, at, net.outputs[i])));
}
