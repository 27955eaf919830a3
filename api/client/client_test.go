package client

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestAWriteIsSentAgainUnderTheSameKey(t *testing.T) {
	for name, lose := range map[string]http.HandlerFunc{
		"no answer": drop, "half an answer": cut,
		"unavailable": refuse(problem.New(problem.Unavailable, "the store is away")),
	} {
		t.Run(name, func(t *testing.T) {
			op := api.Operation{Meta: api.Meta{ID: api.NewID()}, State: api.OpAccepted}
			c, h := serve(t, nil, lose, lose, answer(202, op))
			got, err := Create(t.Context(), c, "", &api.VPCCreate{Name: "demo", CIDR: "10.1.0.0/16"}, Write{})
			require.NoError(t, err)
			require.Equal(t, op.ID, got.ID)
			seen := h.seen()
			require.Len(t, seen, 3)
			key := seen[0].Header.Get("Idempotency-Key")
			require.True(t, api.IsUUID(key), key)
			for _, r := range seen {
				require.Equal(t, key, r.Header.Get("Idempotency-Key"))
				require.Equal(t, "/v1/projects/default/vpcs", r.URL.Path)
				require.Equal(t, "Bearer secret-token", r.Header.Get("Authorization"))
			}
			_, err = c.Noop(t.Context(), Write{})
			require.NoError(t, err)
			seen = h.seen()
			require.NotEqual(t, key, seen[len(seen)-1].Header.Get("Idempotency-Key"), "another write has another key")
		})
	}
}

func TestWhatIsAwayIsNotAskedForAgain(t *testing.T) {
	c, h := serve(t, func(c *Config) { c.Patience = time.Hour }, refuse(problem.New(problem.Conflict, "pool fast cannot be used").Away()))
	_, err := c.Noop(t.Context(), Write{})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Len(t, h.seen(), 1)
}

func TestGivesUpWhenPatienceIsOver(t *testing.T) {
	c, h := serve(t, func(c *Config) { c.Patience = 400 * time.Millisecond }, drop)
	_, err := c.Noop(t.Context(), Write{})
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Contains(t, err.Error(), "was lost")
	require.GreaterOrEqual(t, len(h.seen()), 2)
}

func TestWhatCannotSucceedIsSentOnce(t *testing.T) {
	want := &problem.Problem{Kind: problem.Invalid, What: "vpc is wrong", Why: "it has: colons", Fix: "mend it", Fields: []problem.Field{{Path: "cidr", Message: "bad", Value: "x"}}}
	c, h := serve(t, nil, refuse(want))
	_, err := c.Noop(t.Context(), Write{Key: "mine", IfMatch: 7, Wait: 2 * time.Second})
	require.Equal(t, want, problem.From(err))
	require.Len(t, h.seen(), 1)
	r := h.seen()[0]
	require.Equal(t, "mine", r.Header.Get("Idempotency-Key"))
	require.Equal(t, `"7"`, r.Header.Get("If-Match"))
	require.Equal(t, "2s", r.URL.Query().Get("wait"))
}

func TestNobodyThereFailsAtOnceAndSaysWhere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	host, port := hostPort(t, l.Addr().String())
	l.Close()
	c, err := New(Config{Host: host, Port: port, Patience: time.Hour})
	require.NoError(t, err)
	_, err = c.Health(t.Context())
	p := problem.From(err)
	require.Equal(t, problem.Unavailable, p.Kind)
	require.Contains(t, p.What, fmt.Sprintf("http://127.0.0.1:%d", port))
	require.Contains(t, p.Why, "refused")
	require.Contains(t, p.Fix, "--host")
	require.Contains(t, p.Fix, "GNEXT_PORT")
}

func TestDialPatienceWaitsForAServerThatStarts(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	address := l.Addr().String()
	host, port := hostPort(t, address)
	l.Close()
	tried := make(chan struct{}, 100)
	c, err := New(Config{Host: host, Port: port, DialPatience: time.Minute, Trace: func(string, ...any) {
		select {
		case tried <- struct{}{}:
		default:
		}
	}})
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() { _, err := c.Health(t.Context()); done <- err }()
	<-tried // it was refused once
	l, err = net.Listen("tcp", address)
	require.NoError(t, err)
	s := &http.Server{Handler: answer(200, Health{Status: "ok"})}
	go func() { _ = s.Serve(l) }()
	defer s.Close()
	require.NoError(t, <-done)
}

func TestWaitOutlivesRestarts(t *testing.T) {
	id := api.NewID()
	op := func(s api.OperationState) http.HandlerFunc {
		return answer(200, api.Operation{Meta: api.Meta{ID: id}, State: s})
	}
	for _, observed := range []bool{false, true} {
		c, h := serve(t, func(c *Config) { c.Patience = -1 },
			op(api.OpRunning), drop, refuse(problem.New(problem.Unavailable, "starting")), cut, op(api.OpRunning), op(api.OpSucceeded))
		var states []api.OperationState
		o := WaitOptions{}
		if observed {
			o.Observe = func(op *api.Operation) { states = append(states, op.State) }
		}
		got, err := c.Wait(t.Context(), id, o)
		require.NoError(t, err)
		require.Equal(t, api.OpSucceeded, got.State)
		require.Len(t, h.seen(), 6)
		if observed {
			require.Equal(t, []api.OperationState{api.OpRunning, api.OpRunning, api.OpSucceeded}, states)
		} else {
			require.Equal(t, "30s", h.seen()[0].URL.Query().Get("wait"))
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	c, _ := serve(t, nil, drop)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err := c.Wait(ctx, api.NewID(), WaitOptions{})
	require.True(t, problem.Is(err, problem.Timeout), "%v", err)

	c, h := serve(t, nil, refuse(problem.New(problem.NotFound, "no such operation")))
	_, err = c.Wait(t.Context(), api.NewID(), WaitOptions{})
	require.True(t, problem.Is(err, problem.NotFound), "%v", err)
	require.Len(t, h.seen(), 1)
}

func TestAllGoesThroughThePages(t *testing.T) {
	page := func(next string, names ...string) http.HandlerFunc {
		p := Page[*api.VM]{NextPageToken: next}
		for _, n := range names {
			p.Items = append(p.Items, &api.VM{Meta: api.Meta{Name: n}})
		}
		return answer(200, p)
	}
	c, h := serve(t, nil, page("t1", "a", "b"), drop, page("t2", "c"), page("", "d"))
	var got []string
	for vm, err := range All[*api.VM](t.Context(), c, "p", ListOptions{Labels: map[string]string{"tier": "web"}, Abnormal: true}) {
		require.NoError(t, err)
		got = append(got, vm.Name)
	}
	require.Equal(t, []string{"a", "b", "c", "d"}, got)
	seen := h.seen()
	require.Equal(t, "/v1/projects/p/vms", seen[0].URL.Path)
	require.Equal(t, "tier=web", seen[0].URL.Query().Get("label"))
	require.Equal(t, "true", seen[3].URL.Query().Get("abnormal"))
	require.Equal(t, []string{"", "t1", "t1", "t2"}, []string{
		seen[0].URL.Query().Get("page_token"), seen[1].URL.Query().Get("page_token"), seen[2].URL.Query().Get("page_token"), seen[3].URL.Query().Get("page_token"),
	})
}

func TestAnswersOfSomethingElse(t *testing.T) {
	html := func(status int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, "<html>hello</html>")
		}
	}
	for status, kind := range map[int]problem.Kind{200: problem.Internal, 302: problem.Internal, 401: problem.Unauthenticated, 404: problem.NotFound, 418: problem.Invalid, 500: problem.Internal} {
		c, _ := serve(t, nil, html(status))
		_, err := Get[*api.VM](t.Context(), c, "", "x")
		p := problem.From(err)
		require.Equal(t, kind, p.Kind, "%d: %v", status, err)
		require.NotEmpty(t, p.Fix)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	var leaked bool
	other, _ := serve(t, nil, func(http.ResponseWriter, *http.Request) { leaked = true })
	c, _ := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, other.Address(), http.StatusTemporaryRedirect)
	})
	_, err := c.Health(t.Context())
	require.Error(t, err)
	require.False(t, leaked)
}

func TestTraceTellsNoSecrets(t *testing.T) {
	var log strings.Builder
	c, _ := serve(t, func(c *Config) { c.Trace = func(f string, a ...any) { fmt.Fprintf(&log, f+"\n", a...) } },
		answer(200, api.LoggedIn{Token: "new-token"}))
	_, err := c.Login(t.Context(), api.Login{User: "admin", Password: "hunter2"})
	require.NoError(t, err)
	require.Contains(t, log.String(), "POST")
	for _, s := range []string{"hunter2", "new-token", "secret-token"} {
		require.NotContains(t, log.String(), s)
	}
}

func TestAddresses(t *testing.T) {
	for in, want := range map[string]string{
		"": "http://127.0.0.1:8899", "cloud.example": "http://cloud.example:8899", "::1": "http://[::1]:8899", "[::1]": "http://[::1]:8899",
		"https://cloud.example/": "https://cloud.example:8899",
	} {
		c, err := New(Config{Host: in})
		require.NoError(t, err, in)
		require.Equal(t, want, c.Address())
	}
	for _, in := range []string{"a b", "host:1234", "ftp://x", "x/y", "user@x", "http://", "?"} {
		_, err := New(Config{Host: in})
		require.True(t, problem.Is(err, problem.Invalid), "%q: %v", in, err)
	}
	_, err := New(Config{Port: 70000})
	require.True(t, problem.Is(err, problem.Invalid))
}

// receive takes an upload as the server does.
func receive(w http.ResponseWriter, r *http.Request) {
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	sum := sha256.Sum256(b)
	answer(200, Uploaded{ID: r.URL.Path[len("/v1/uploads/"):], Size: int64(len(b)), SHA256: hex.EncodeToString(sum[:])})(w, r)
}

// swallow reads n bytes of the body and cuts the connection.
func swallow(n int64) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.CopyN(io.Discard, r.Body, n)
		panic(http.ErrAbortHandler)
	}
}

// uploads keeps what arrives, as the server does, and cuts connections after so many bytes.
type uploads struct {
	mu    sync.Mutex
	kept  map[string][]byte
	whole map[string]bool
	cuts  []int64
	puts  []string // queries
}

func (u *uploads) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id := r.URL.Path[len("/v1/uploads/"):]
	u.mu.Lock()
	defer u.mu.Unlock()
	sum := func() string { s := sha256.Sum256(u.kept[id]); return hex.EncodeToString(s[:]) }
	if r.Method == http.MethodGet {
		if _, ok := u.kept[id]; !ok {
			answer(404, problem.New(problem.NotFound, "no").Document())(w, r)
			return
		}
		answer(200, map[string]any{"id": id, "size": len(u.kept[id]), "whole": u.whole[id], "sha256": sum()})(w, r)
		return
	}
	u.puts = append(u.puts, r.URL.RawQuery)
	offset, _ := strconv.Atoi(r.URL.Query().Get("offset"))
	body := io.Reader(r.Body)
	cut := len(u.cuts) > 0
	if cut {
		body, u.cuts = io.LimitReader(r.Body, u.cuts[0]), u.cuts[1:]
	}
	b, _ := io.ReadAll(body)
	u.kept[id] = append(u.kept[id][:offset:offset], b...)
	if cut {
		panic(http.ErrAbortHandler)
	}
	u.whole[id] = true
	answer(200, Uploaded{ID: id, Size: int64(len(u.kept[id])), SHA256: sum()})(w, r)
}

func TestAnUploadGoesOn(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	u := &uploads{kept: map[string][]byte{}, whole: map[string]bool{}, cuts: []int64{100_000, 0, 50_000}}
	c, _ := serve(t, nil, u.ServeHTTP)
	file := bytes.NewReader(append([]byte("skipped"), content...))
	_, err := file.Seek(7, io.SeekStart)
	require.NoError(t, err)
	var last int64
	up, err := c.Upload(t.Context(), file, int64(len(content)), func(n int64) { last = n })
	require.NoError(t, err)
	sum := sha256.Sum256(content)
	require.Equal(t, hex.EncodeToString(sum[:]), up.SHA256)
	require.EqualValues(t, len(content), last)
	require.True(t, bytes.Equal(content, u.kept[up.ID]))
	require.Equal(t, []string{"offset=0", "offset=100000", "offset=100000", "offset=150000"}, u.puts)

	// In another run, under the same ID.
	id := api.NewID()
	u.kept[id], u.puts = content[:1000:1000], nil
	up, err = c.UploadAs(t.Context(), id, bytes.NewReader(content), int64(len(content)), nil)
	require.NoError(t, err)
	require.Equal(t, id, up.ID)
	require.Equal(t, []string{"offset=1000"}, u.puts)
	_, err = c.UploadAs(t.Context(), id, bytes.NewReader(content), int64(len(content)), nil)
	require.NoError(t, err)
	require.Len(t, u.puts, 1, "it was there")

	// What is there is of another file: that is noticed at the end, or at once if it is whole.
	u.kept[id], u.whole[id] = []byte("another file"), true
	_, err = c.UploadAs(t.Context(), id, bytes.NewReader(content), int64(len(content)), nil)
	require.NoError(t, err)
	require.True(t, bytes.Equal(content, u.kept[id]))
	u.kept[id], u.whole[id] = []byte("another file"), false
	_, err = c.UploadAs(t.Context(), id, bytes.NewReader(content), int64(len(content)), nil)
	require.ErrorContains(t, err, "damaged")

	u.cuts = []int64{0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	_, err = c.Upload(t.Context(), bytes.NewReader(content), int64(len(content)), nil)
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
}

func TestAnUploadFromAPipeCannotBeginAgain(t *testing.T) {
	c, h := serve(t, nil, swallow(10), receive)
	_, err := c.Upload(t.Context(), io.MultiReader(strings.NewReader(strings.Repeat("x", 1<<20))), -1, nil)
	require.True(t, problem.Is(err, problem.Unavailable), "%v", err)
	require.Len(t, h.seen(), 1)
	up, err := c.Upload(t.Context(), io.MultiReader(strings.NewReader("whole")), -1, nil)
	require.NoError(t, err)
	require.EqualValues(t, 5, up.Size)
}

func TestAnUploadOfABrokenFileFailsAtOnce(t *testing.T) {
	c, _ := serve(t, nil, receive)
	_, err := c.Upload(t.Context(), iotest.TimeoutReader(strings.NewReader(strings.Repeat("x", 1<<20))), -1, nil)
	require.True(t, problem.Is(err, problem.Invalid), "%v", err)
	require.ErrorIs(t, err, iotest.ErrTimeout)
}

func TestDamagedUploadIsNoticed(t *testing.T) {
	c, _ := serve(t, nil, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		answer(200, Uploaded{ID: "x", Size: 3, SHA256: "00"})(w, r)
	})
	_, err := c.Upload(t.Context(), strings.NewReader("abc"), 3, nil)
	require.ErrorContains(t, err, "damaged")
}

func TestAgentCalls(t *testing.T) {
	agent, vm := api.NewID(), api.NewID()
	c, h := serve(t, nil,
		answer(200, api.AgentJoined{ID: agent, Credential: "c"}),
		answer(200, api.AgentOrders{Pools: []api.AgentPool{{ID: "p"}}}),
		answer(200, api.Seed{InstanceID: vm}),
		func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "disk") },
		refuse(problem.New(problem.Forbidden, "not yours")))
	j, err := c.Join(t.Context(), api.AgentJoin{Name: "node-1", Token: "t"})
	require.NoError(t, err)
	require.Equal(t, agent, j.ID)
	o, err := c.Report(t.Context(), agent, api.AgentReport{})
	require.NoError(t, err)
	require.Len(t, o.Pools, 1)
	s, err := c.Seed(t.Context(), agent, vm)
	require.NoError(t, err)
	require.Equal(t, vm, s.InstanceID)
	r, size, err := c.OpenImage(t.Context(), agent, "img")
	require.NoError(t, err)
	b, err := io.ReadAll(r)
	require.NoError(t, errors.Join(err, r.Close()))
	require.Equal(t, "disk", string(b))
	require.EqualValues(t, 4, size)
	_, _, err = c.OpenImage(t.Context(), agent, "img")
	require.True(t, problem.Is(err, problem.Forbidden), "%v", err)
	paths := []string{}
	for _, r := range h.seen() {
		paths = append(paths, r.Method+" "+r.URL.Path)
	}
	require.Equal(t, []string{
		"POST /v1/agents/join", "POST /v1/agents/" + agent + "/report", "GET /v1/agents/" + agent + "/vms/" + vm + "/seed",
		"GET /v1/agents/" + agent + "/images/img/content", "GET /v1/agents/" + agent + "/images/img/content",
	}, paths)
}
