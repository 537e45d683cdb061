// Search without a server: browsers refuse web workers on file:// pages, so run the worker's script in a hidden frame.
if (location.protocol === "file:")
  window.Worker = class {
    constructor(url) {
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      this.scope = this.frame.contentWindow
      this.scope.postMessage = data => setTimeout(() => this.onmessage?.({ data }))
      const script = this.frame.contentDocument.createElement("script")
      script.src = new URL(url, location)
      this.loaded = new Promise(resolve => (script.onload = resolve))
      this.frame.contentDocument.body.append(script)
    }
    postMessage(data) {
      this.loaded.then(() => this.scope.onmessage({ data }))
    }
    terminate() {
      this.frame.remove()
    }
  }
