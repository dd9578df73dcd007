/* The search reads the pages that it has found, for their excerpts; a page that is opened from a file may not do that. */
if (location.protocol === "file:") {
  const root = document.documentElement.dataset.content_root;
  window.fetch = async (url) => new Response(`<div role="main">${SEARCH_TEXT[url.slice(root.length)]}</div>`);
}
