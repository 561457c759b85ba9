// The login form.
import { h } from "./shared/dom.js";
import { ofLogin } from "./problems.js";
import { RestError, logIn } from "./rest.js";

export class LoginForm {
  // onLogin({token, user, settings})
  constructor(user, onLogin, problems) {
    Object.assign(this, { onLogin, problems });
    this.user = h("input", {
      name: "user",
      autocomplete: "username",
      required: true,
      value: user,
      autocapitalize: "none",
    });
    this.password = h("input", {
      name: "password",
      type: "password",
      autocomplete: "current-password",
      required: true,
    });
    this.button = h("button", { type: "submit", class: "good" }, "Log in");
    this.element = h(
      "form",
      { class: "panel login", on: { submit: (event) => this.onSubmit(event) } },
      h("h1", {}, "Log in"),
      h("label", {}, "Name", this.user),
      h("label", {}, "Password", this.password),
      this.button,
      h("p", { class: "muted" }, "Two tabs are two users: a login belongs to its tab."),
    );
  }

  async onSubmit(event) {
    event.preventDefault();
    this.button.disabled = true;
    // Why the last login ended counts no longer: an administrator may have enabled the user meanwhile.
    this.problems.clearAll();
    try {
      this.onLogin(await logIn(this.user.value.trim(), this.password.value));
    } catch (error) {
      if (!(error instanceof RestError)) throw error;
      this.problems.show(ofLogin(error));
      this.password.focus();
    } finally {
      this.button.disabled = false;
    }
  }
}
