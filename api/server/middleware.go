package server

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
)

// maxBody is how much of a request body is read, uploads excepted. One byte less is the largest that passes.
const maxBody = 1 << 20

// answerWithin bounds how long an answer may take to be written; streams set their own deadline.
const answerWithin = 2 * time.Minute

// open is the list of all that needs no token. Everything else does, whether it exists or not.
var open = map[string]bool{
	"GET /v1/health":       true,
	"POST /v1/login":       true,
	"POST /v1/agents/join": true, // authenticates by the join token in its body
	"GET /openapi.json":    true,
	"GET /docs":            true,
}

type infoKey struct{}

// requestInfo is what a request carries along.
type requestInfo struct {
	id     string
	handle auth.Handle // of who sent it; allows nothing on open paths
	bearer string
	remote string
	cause  error // what an error answer does not show
}

// infoOf returns what the request of ctx carries along, or nil.
func infoOf(ctx context.Context) *requestInfo {
	info, _ := ctx.Value(infoKey{}).(*requestInfo)
	return info
}

// handleOf returns the authority of who sent the request.
func handleOf(ctx context.Context) auth.Handle {
	if info := infoOf(ctx); info != nil {
		return info.handle
	}
	return auth.Handle{}
}

// answer is a http.ResponseWriter that remembers what was written.
type answer struct {
	http.ResponseWriter
	status int
	bytes  int64
}

func (a *answer) WriteHeader(status int) {
	if a.status == 0 {
		a.status = status
	}
	a.ResponseWriter.WriteHeader(status)
}

func (a *answer) Write(b []byte) (int, error) {
	if a.status == 0 {
		a.status = http.StatusOK
	}
	n, err := a.ResponseWriter.Write(b)
	a.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController reach the connection.
func (a *answer) Unwrap() http.ResponseWriter { return a.ResponseWriter }

var requestIDRE = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// observe gives the request an ID, logs it, and turns a panic into an answer.
func (s *Server) observe(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		info := &requestInfo{id: r.Header.Get("X-Request-Id"), remote: remoteHost(r)}
		if !requestIDRE.MatchString(info.id) {
			info.id = uuid.NewString()
		}
		a := &answer{ResponseWriter: w}
		a.Header().Set("X-Request-Id", info.id)
		a.Header().Set("X-Content-Type-Options", "nosniff")
		a.Header().Set("Cache-Control", "no-store")
		_ = http.NewResponseController(w).SetWriteDeadline(start.Add(answerWithin))
		defer func() {
			if v := recover(); v != nil {
				if v == http.ErrAbortHandler { //nolint:errorlint // it is thrown, not returned
					panic(v)
				}
				info.cause = fmt.Errorf("panic: %v\n%s", v, bytes.TrimSpace(debug.Stack()))
				if a.status == 0 {
					writeProblem(a, frameworkProblem(http.StatusInternalServerError))
				}
			}
			s.logRequest(r, a, info, time.Since(start))
		}()
		next.ServeHTTP(a, r.WithContext(context.WithValue(r.Context(), infoKey{}, info)))
	})
}

func frameworkProblem(status int) error {
	return frameworkError(status, "", nil).Document.Problem()
}

func (s *Server) logRequest(r *http.Request, a *answer, info *requestInfo, took time.Duration) {
	level := slog.LevelInfo
	switch {
	case a.status >= http.StatusInternalServerError:
		level = slog.LevelError
	case a.status < http.StatusBadRequest && (r.Method == http.MethodGet || strings.HasSuffix(r.URL.Path, "/report")):
		level = slog.LevelDebug // what happens every few seconds and changes nothing
	}
	if !s.log.Enabled(r.Context(), level) {
		return
	}
	attrs := []slog.Attr{
		slog.String("id", info.id), slog.String("method", r.Method), slog.String("path", r.URL.Path), slog.Int("status", a.status),
		slog.Int64("bytes", a.bytes), slog.Duration("took", took), slog.String("remote", info.remote), slog.String("who", info.handle.Who().Name),
	}
	if info.cause != nil && a.status >= http.StatusInternalServerError {
		attrs = append(attrs, slog.Any("cause", info.cause))
	}
	s.log.LogAttrs(r.Context(), level, "request", attrs...)
}

// authenticate finds out who sends the request. Nothing behind it is reached without a valid token, but for the open list.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// An escaped path is never open: it could be routed differently from how it reads.
		if open[r.Method+" "+r.URL.Path] && r.URL.RawPath == "" {
			next.ServeHTTP(w, r)
			return
		}
		scheme, bearer, _ := strings.Cut(r.Header.Get("Authorization"), " ")
		if !strings.EqualFold(scheme, "Bearer") || bearer == "" {
			writeProblem(w, problem.New(problem.Unauthenticated, "a token is needed").Try("log in, and send it as Authorization: Bearer TOKEN"))
			return
		}
		h, err := s.o.Accounts.Authenticate(r.Context(), strings.TrimSpace(bearer))
		if err != nil {
			writeProblem(w, err)
			return
		}
		info := infoOf(r.Context())
		info.handle, info.bearer = h, strings.TrimSpace(bearer)
		next.ServeHTTP(w, r)
	})
}

func remoteHost(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}
