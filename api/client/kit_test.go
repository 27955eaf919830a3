package client

import (
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api/problem"
)

// handlers answers the first request with the first handler and so on; the last one answers all that follow.
type handlers struct {
	mu       sync.Mutex
	next     []http.HandlerFunc
	requests []*http.Request
}

func (h *handlers) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	f := h.next[0]
	if len(h.next) > 1 {
		h.next = h.next[1:]
	}
	h.requests = append(h.requests, r)
	h.mu.Unlock()
	f(w, r)
}

func (h *handlers) seen() []*http.Request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]*http.Request(nil), h.requests...)
}

// serve starts a server and returns a client of it.
func serve(t *testing.T, change func(*Config), hs ...http.HandlerFunc) (*Client, *handlers) {
	t.Helper()
	h := &handlers{next: hs}
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	c := Config{Token: "secret-token", Patience: 5 * time.Second, Timeout: 5 * time.Second}
	c.Host, c.Port = hostPort(t, s.Listener.Addr().String())
	if change != nil {
		change(&c)
	}
	out, err := New(c)
	require.NoError(t, err)
	return out, h
}

func hostPort(t *testing.T, address string) (string, int) {
	t.Helper()
	host, p, err := net.SplitHostPort(address)
	require.NoError(t, err)
	port, err := strconv.Atoi(p)
	require.NoError(t, err)
	return host, port
}

func answer(status int, v any) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(v)
	}
}

func refuse(p *problem.Problem) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		d := p.Document()
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(d.Status)
		_ = json.NewEncoder(w).Encode(d)
	}
}

// drop takes the request and cuts the connection without an answer.
func drop(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

// cut begins an answer and cuts the connection in the middle of it.
func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", "1000")
	_, _ = w.Write([]byte(`{"id":"`))
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}
