/** The element of this id. Its absence is our own mistake, and says so. */
export function byId<E extends HTMLElement = HTMLElement>(id: string): E {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`index.html has no #${id}`);
  return element as E;
}

/** What is kept between visits; null where the browser keeps nothing for this page. */
export function remembered(key: string): string | null {
  try {
    return localStorage.getItem(`helium.${key}`);
  } catch {
    return null;
  }
}

export function remember(key: string, value: string): void {
  try {
    localStorage.setItem(`helium.${key}`, value);
  } catch {
    // a private window: the choice holds until the page is closed
  }
}
