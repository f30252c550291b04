"use strict";
// Places what the server has formatted, as text and never as markup.
const main = document.querySelector("main");
const connection = document.getElementById("connection");
const SLOWEST = 5000, LOG_PAUSE = 2000;
let awaySince = null, over = false;

function put(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function place(root, texts, done) {
  for (const element of root.querySelectorAll("[data-text]")) {
    const text = texts[element.dataset.text] ?? "";
    put(element, text);
    element.toggleAttribute("data-empty", text === "–");
    if (element.dataset.state !== undefined) element.dataset.state = text;
    if (element.dataset.hides !== undefined) element.parentElement.hidden = text === "–";
  }
  for (const bar of root.querySelectorAll("[data-done]")) bar.value = done ?? 0;
}

function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => {
      const cell = document.createElement("td");
      cell.textContent = text;
      return cell;
    }));
    return row;
  }));
}

function fillBlocks(blocks) {
  document.getElementById("no-blocks").hidden = blocks.length > 0;
  const used = new Set();
  const rows = blocks.map((block) => {
    const row = document.createElement("div"), bar = document.createElement("span");
    row.className = "block";
    bar.className = "bar";
    bar.setAttribute("role", "img");
    bar.setAttribute("aria-label", block.text);
    for (const [name, share] of block.parts) {
      const part = document.createElement("span");
      used.add(name);
      part.dataset.part = name;
      part.style.width = `${100 * share}%`;
      part.title = `${name}: ${(100 * share).toFixed(1)}%`;
      bar.append(part);
    }
    const name = document.createElement("span"), words = document.createElement("span");
    name.textContent = block.name;
    words.textContent = block.text;
    words.className = "muted";
    row.append(name, bar, words);
    return row;
  });
  const key = document.createElement("p");
  key.className = "key";
  for (const name of used) {
    const entry = document.createElement("span"), colour = document.createElement("i");
    colour.dataset.part = name;
    entry.append(colour, name);
    key.append(entry);
  }
  document.getElementById("blocks").replaceChildren(...rows, ...(used.size ? [key] : []));
}

async function ask(address) {
  const answer = await fetch(address, { headers: { Accept: "application/json" }, cache: "no-store" });
  if (answer.status === 401) {
    location.assign("/login");
    await new Promise(() => {}); // the page is left
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.message);
  return content;
}

function reached() {
  awaySince = null;
  connection.className = "";
  put(connection, "");
}

function missed(error) {
  awaySince ??= new Date();
  const known = error instanceof TypeError ? "" : `: ${error.message}`;
  connection.className = "away";
  put(connection, over
    ? "Over; nothing answers here any more"
    : `No answer since ${awaySince.toLocaleTimeString()}${known}; trying again`);
}

async function keep(pause, work) {
  for (;;) {
    let next = pause;
    if (!document.hidden) {
      try {
        next = (await work()) ?? pause;
        reached();
      } catch (error) {
        missed(error);
        next = Math.min(SLOWEST, 2 * pause);
      }
    }
    await new Promise((done) => {
      const timer = setTimeout(done, next);
      if (document.hidden) document.addEventListener("visibilitychange", () => { clearTimeout(timer); done(); }, { once: true });
    });
  }
}

function watchJob() {
  let position = "";
  keep(1000, async () => {
    const news = await ask(`${main.dataset.job}/news?after=${position}`);
    position = news.position;
    over = news.over;
    place(main, news.texts, news.done);
    for (const form of main.querySelectorAll("[data-action]")) form.hidden = !news.actions.includes(form.dataset.action);
    fillBlocks(news.block_times);
    if (news.curves) {
      document.getElementById("no-curves").hidden = Object.keys(news.curves).length > 0;
      drawCharts(news.curves, news.marks);
      document.getElementById("recovered").hidden = !news.recoveries.length;
      for (const body of main.querySelectorAll("[data-rows]")) fill(body, news[body.dataset.rows]);
    }
    return 1000 * news.pause;
  });
  watchLogs();
}

function watchLogs() {
  const logs = document.getElementById("logs"), process = document.getElementById("process");
  const log = document.getElementById("log");
  let texts = {};
  const show = () => {
    const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 4;
    put(log, texts[process.value] ?? "Nothing was written yet.");
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  const read = async () => {
    texts = await ask(`${main.dataset.job}/logs`);
    const known = new Set(Array.from(process.options, (option) => option.value));
    for (const name of Object.keys(texts)) if (!known.has(name)) process.add(new Option(name, name));
    logs.querySelector(".tools").hidden = !process.options.length;
    show();
  };
  process.addEventListener("change", show);
  let reading = false;
  logs.addEventListener("toggle", async () => {
    if (reading) return;
    reading = true;
    while (logs.open) {
      await read().catch(missed);
      await new Promise((done) => setTimeout(done, LOG_PAUSE));
    }
    reading = false;
  });
}

function watchList() {
  keep(2000, async () => {
    const jobs = await ask(main.dataset.list);
    const rows = Array.from(main.querySelectorAll("tr[data-job]"));
    if (rows.map((row) => row.dataset.job).join() !== jobs.map((job) => job.id).join()) {
      location.reload();
      return;
    }
    jobs.forEach((job, index) => place(rows[index], job.texts, job.done));
  });
}

if (main.dataset.job !== undefined) watchJob();
else watchList();
