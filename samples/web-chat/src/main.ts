/** Puts the page together: language, theme, settings, model, text. */
import { byId, remember, remembered } from "./dom.js";
import { ModelPanel } from "./model-panel.js";
import { Settings } from "./settings.js";
import { isLanguage, LANGUAGES, preferredLanguage, showStrings, STRINGS, type Language } from "./strings.js";
import { startTheme } from "./theme.js";
import { Writer } from "./writer.js";

/** The bundle lies beside the page, unless the page's address says `?model=` and where else. */
const address = new URLSearchParams(location.search).get("model") ?? new URL("./model/", document.baseURI).href;

const panel = new ModelPanel(address, () => writer.show());
const settings = new Settings(() => {
  writer.stop();
  void panel.load(settings.provider);
});
const writer: Writer = new Writer(panel, settings);

function speak(language: Language): void {
  const strings = STRINGS[language];
  document.documentElement.lang = language;
  showStrings(document, strings);
  settings.language = language;
  panel.speak(strings, language);
  writer.speak(strings, language);
}

const select = byId<HTMLSelectElement>("language");
for (const language of LANGUAGES) {
  const { languageName, start } = STRINGS[language];
  select.append(Object.assign(new Option(languageName, language), { lang: language }));
  const button = Object.assign(document.createElement("button"), {
    type: "button",
    textContent: languageName,
    lang: language,
    title: `${start} …`,
  });
  button.addEventListener("click", () => writer.begin(start));
  byId("starts").append(button);
}
const chosen = remembered("language");
select.value = isLanguage(chosen) ? chosen : preferredLanguage(navigator.languages);
select.addEventListener("change", () => {
  remember("language", select.value);
  speak(select.value as Language);
});

// It answers with what was built; while one works on the page, nothing is to be kept.
if (import.meta.env.PROD) navigator.serviceWorker?.register("./sw.js").catch(() => undefined);

startTheme();
speak(select.value as Language);
byId<HTMLTextAreaElement>("prompt").value = STRINGS[select.value as Language].start;
byId<HTMLDetailsElement>("settings").open = matchMedia("(min-width: 60rem)").matches;
const { saveData = false } = (navigator as { connection?: { saveData?: boolean } }).connection ?? {};
if (!saveData) void panel.load(settings.provider);
writer.show();
