// What ChannelCoder 3.0.2 does of the same, through its own functions:
//
//     node channelcoder.mjs PACKAGE turns NAME TURNS        a session's turns, each with the real CLI
//     node channelcoder.mjs PACKAGE save FOLDER TURNS EVERY saves of a session that grows turn by turn
//     node channelcoder.mjs PACKAGE list FOLDER             the list of a store
//
// `save` does what its sessions do after each turn (FileSessionStorage.save of the whole state), with one save in EVERY.
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [, , folder, work, ...rest] = process.argv;
const { FileSessionStorage, session } = await import(pathToFileURL(join(folder, 'dist', 'index.mjs')));

const cpu = () => { const { user, system } = process.cpuUsage(); return (user + system) / 1e6; };
const written = () => Number(/^wchar: (\d+)/m.exec(readFileSync('/proc/self/io', 'utf8'))[1]);
const median = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];

async function turns(name, count) {
  const kept = session({ name });
  for (let number = 1; number <= Number(count); number++) {
    const answer = await kept.claude(`Part ${number}`);
    if (!answer.success) throw new Error(answer.error);
  }
}

async function save(store, count, every) {
  const storage = new FileSessionStorage(store);
  const id = '11111111-1111-4111-8111-111111111111';
  const state = { sessionChain: [], messages: [], metadata: { name: 'work', created: new Date(), lastActive: new Date() } };
  const costs = [];
  let file = '';
  const wrote = written();
  for (let number = 1; number <= Number(count); number++) {
    const said = { timestamp: new Date(), sessionId: id };
    state.sessionChain.push(id);
    state.messages.push({ role: 'user', content: 'p'.repeat(400), ...said });
    state.messages.push({ role: 'assistant', content: 'a'.repeat(1200), ...said });
    if (number % Number(every)) continue;
    const began = cpu();
    file = await storage.save(state, 'work');
    costs.push(cpu() - began);
  }
  const sum = costs.reduce((a, b) => a + b, 0);
  console.log(JSON.stringify({
    cpu: sum * every, written: (written() - wrote) * every, kept: statSync(file).size, last: median(costs.slice(-9)),
  }));
}

async function list(store) {
  const storage = new FileSessionStorage(store);
  const [began, held] = [cpu(), process.memoryUsage().rss];
  const sessions = await session.list(storage);
  console.log(JSON.stringify({ sessions: sessions.length, cpu: cpu() - began, memory: process.resourceUsage().maxRSS * 1024 - held }));
}

await { turns, save, list }[work](...rest);
