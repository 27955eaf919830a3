package server

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"net/http"
	"regexp"
)

// description is what a reader of the document should know first.
const description = `Everything that touches the world is an operation: a write answers 202 with the operation, which is carried out whatever dies, and either succeeds or is undone. Wait for it with ?wait=30s, by GET /v1/operations/{ref}, or by following GET /v1/events.

A resource is named by its name or its ID. Errors are application/problem+json; their "code" is for programs. Send an Idempotency-Key with a write to be able to repeat it, and If-Match to change only what you have seen.`

//go:embed docs.html
var docsPage []byte

// docsPolicy lets the page run its own script and ask this server, and nothing else: it works without internet.
var docsPolicy = func() string {
	script := regexp.MustCompile(`(?s)<script>(.*)</script>`).FindSubmatch(docsPage)
	sum := sha256.Sum256(script[1])
	return "default-src 'none'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; script-src 'sha256-" +
		base64.StdEncoding.EncodeToString(sum[:]) + "'"
}()

func (s *Server) serveDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.document) // the client is gone, if this fails
}

func serveDocs(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", docsPolicy)
	_, _ = w.Write(docsPage)
}
