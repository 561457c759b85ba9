// The search for calls that have ended: by user, address and time. Its page is kept while the operator looks at a call.
import { empty, table } from "./columns.js";
import { h, setText } from "./dom.js";
import { count, zone } from "./format.js";
import { FOUND, endedRow } from "./ended.js";

const SHOWN = 50;
const MINUTE_MS = 60_000;

const field = (label, properties) => {
  const input = h("input", { autocomplete: "off", spellcheck: "false", maxlength: 200, ...properties });
  return [h("label", {}, h("span", { class: "muted" }, label), input), input];
};

// A local time from the form, as Unix seconds. A minute that is the end of the time is meant whole.
const seconds = (value, end) => (Date.parse(value) + (end ? MINUTE_MS - 1 : 0)) / 1000;

export class Search {
  constructor() {
    const [userField, user] = field("user", { type: "search", id: "search-user", placeholder: "a part of the name" });
    const [addressField, address] = field("client's address", {
      type: "search",
      id: "search-address",
      placeholder: "10.1.2.3",
    });
    const [fromField, from] = field("from", { type: "datetime-local", id: "search-from" });
    const [toField, to] = field("to", { type: "datetime-local", id: "search-to" });
    this.inputs = { user, address, from, to };
    this.note = h("span", { class: "muted", role: "status" });
    this.body = h("tbody");
    this.more = h("button", { type: "button", hidden: true, on: { click: () => this.ask(this.next) } }, "more");
    this.results = h("div", { class: "scroll", hidden: true }, table(FOUND, this.body, { id: "found" }));
    const form = h(
      "form",
      {
        class: "search-form",
        on: {
          submit: (event) => {
            event.preventDefault();
            this.ask("");
          },
        },
      },
      userField,
      addressField,
      fromField,
      toField,
      h("button", { type: "submit", id: "search" }, "search"),
    );
    this.element = h(
      "section",
      { class: "panel search" },
      h("h2", {}, `Calls that have ended (${zone(Date.now() / 1000)})`, this.note),
      form,
      this.results,
      this.more,
    );
    this.next = "";
    this.asked = 0;
    this.shown = 0;
  }

  // The first page, or the one after the call `before`. An answer is not shown if a later request has overtaken it.
  async ask(before) {
    const question = ++this.asked;
    const { user, address, from, to } = this.inputs;
    const query = new URLSearchParams({ limit: SHOWN, user: user.value.trim(), address: address.value.trim(), before });
    if (from.value) query.set("from", seconds(from.value, false));
    if (to.value) query.set("to", seconds(to.value, true));
    setText(this.note, "searching …");
    try {
      const answer = await fetch(`api/calls?${query}`);
      const found = await answer.json();
      if (question !== this.asked) return;
      if (answer.ok) this.show(found, before !== "");
      else setText(this.note, found.error);
    } catch {
      if (question === this.asked) setText(this.note, "no answer from the relay");
    }
  }

  show({ calls, next }, isNextPage) {
    if (!isNextPage) {
      this.body.replaceChildren();
      this.shown = 0;
    }
    this.body.append(...calls.map((call) => endedRow(FOUND, call)));
    this.shown += calls.length;
    if (!this.shown) this.body.append(empty(FOUND, "No call matches."));
    this.results.hidden = false;
    this.next = next ?? "";
    this.more.hidden = !next;
    setText(this.note, next ? `the last ${count(this.shown)}` : `${count(this.shown)} found`);
  }
}
