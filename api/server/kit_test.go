package server

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/admission"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/fleet"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

const joinToken = "join-me"

var system = auth.ControlPlane("test")

// kit is a whole server over the in-memory store, with the real admission; only the engine is a double.
type kit struct {
	t         testing.TB
	kv        *store.Memory
	cache     *store.Cache
	admission *admission.Admission
	accounts  *accounts.Accounts
	fleet     *fleet.Fleet
	engine    *engine
	server    *Server
	http      *httptest.Server
	dir       string
	admin     string // a token

	mu    sync.Mutex
	ahead time.Duration // how far the clock of accounts and fleet is ahead
}

// engine notes what it is told.
type engine struct {
	mu       sync.Mutex
	told     []string
	progress func(context.Context, string) (*api.Progress, error) // nil: none
}

func (e *engine) note(what, op string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.told = append(e.told, what+" "+op)
	return nil
}

func (e *engine) Cancel(_ context.Context, op string) error { return e.note("cancel", op) }
func (e *engine) Resume(_ context.Context, op string) error { return e.note("resume", op) }
func (e *engine) Progress(ctx context.Context, op string) (*api.Progress, error) {
	if e.progress == nil {
		return nil, nil
	}
	return e.progress(ctx, op)
}

func (e *engine) URL(op string) string { return "http://temporal.example/" + op }

func newKit(t testing.TB, change ...func(*Options)) *kit {
	t.Helper()
	k := &kit{t: t, kv: store.NewMemory(), engine: &engine{}, dir: t.TempDir()}
	k.cache = store.NewCache(k.kv, store.Root)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); k.cache.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	require.NoError(t, k.cache.WaitFor(ctx, 1))

	vault, err := store.OpenVault(filepath.Join(k.dir, "keys"))
	require.NoError(t, err)
	k.admission = admission.New(k.kv, vault)
	require.NoError(t, k.admission.Bootstrap(ctx))
	k.accounts = accounts.New(k.kv, accounts.Options{JoinToken: joinToken, Now: k.now})
	quiet := slog.New(slog.DiscardHandler)
	k.fleet = fleet.New(fleet.Options{
		KV: k.kv, Cache: k.cache, Credentials: k.accounts, Vault: vault, TemporalAddress: "127.0.0.1:7233", Namespace: "nextstack", Now: k.now, Log: quiet,
	})
	o := Options{
		KV: k.kv, Cache: k.cache, Admission: k.admission, Engine: k.engine, Accounts: k.accounts, Fleet: k.fleet, Version: "1.2.3", Dir: k.dir, Log: quiet,
		ImageFile: func(i *api.Image) string { return filepath.Join(k.dir, "images", i.ID) },
	}
	for _, c := range change {
		c(&o)
	}
	k.server = New(o)
	k.http = httptest.NewServer(k.server.Handler())
	t.Cleanup(func() { k.server.end(); k.http.Close() })
	password, created, err := k.accounts.EnsureAdmin(ctx)
	require.NoError(t, err)
	require.True(t, created)
	k.admin = k.login(password)
	return k
}

func (k *kit) now() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Now().Add(k.ahead)
}

func (k *kit) pass(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.ahead += d
}

func (k *kit) login(password string) string {
	k.t.Helper()
	var out api.LoggedIn
	k.call("", http.MethodPost, "/v1/login", api.Login{User: accounts.AdminName, Password: password}, 200, &out)
	return out.Token
}

// reply is an answer that was read to its end.
type reply struct {
	*http.Response
	body []byte
}

func (r *reply) problem(t testing.TB) *problem.Document {
	t.Helper()
	require.Equal(t, problemType, r.Header.Get("Content-Type"), "%s", r.body)
	var d problem.Document
	dec := json.NewDecoder(bytes.NewReader(r.body))
	dec.DisallowUnknownFields()
	require.NoError(t, dec.Decode(&d), "%s", r.body)
	require.Equal(t, r.StatusCode, d.Status)
	require.NotEmpty(t, d.Code)
	require.NotEmpty(t, d.Title)
	require.NotEmpty(t, d.Detail)
	require.NotEmpty(t, d.Fix, "%s", r.body)
	return &d
}

// send sends a request. body may be a string, which is sent as it is, an io.Reader, or anything else, which is sent as JSON.
func (k *kit) send(token, method, path string, body any, headers ...string) *reply {
	k.t.Helper()
	var r io.Reader
	switch b := body.(type) {
	case nil:
	case string:
		r = strings.NewReader(b)
	case io.Reader:
		r = b
	default:
		text, err := json.Marshal(b)
		require.NoError(k.t, err)
		r = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(context.Background(), method, k.http.URL+path, r)
	require.NoError(k.t, err)
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := k.http.Client().Do(req)
	require.NoError(k.t, err, "%s %s", method, path)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(k.t, err)
	return &reply{res, text}
}

// call sends a request, wants the status, and reads the answer into out, if it is not nil.
func (k *kit) call(token, method, path string, body any, status int, out any, headers ...string) *reply {
	k.t.Helper()
	r := k.send(token, method, path, body, headers...)
	require.Equal(k.t, status, r.StatusCode, "%s %s: %s", method, path, r.body)
	if out != nil {
		require.NoError(k.t, json.Unmarshal(r.body, out), "%s", r.body)
	}
	return r
}

// settle ends an operation as the engine would.
func (k *kit) settle(op string, state api.OperationState) {
	k.t.Helper()
	require.NoError(k.t, k.admission.Settle(context.Background(), system, admission.Outcome{Operation: op, State: state}))
}

// vpc makes a VPC and ends its operation.
func (k *kit) vpc(name string) *api.VPC {
	k.t.Helper()
	var op api.Operation
	k.call(k.admin, http.MethodPost, "/v1/projects/default/vpcs", api.VPCCreate{Name: name, CIDR: "10.0.0.0/16"}, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	var v api.VPC
	k.call(k.admin, http.MethodGet, "/v1/projects/default/vpcs/"+name, nil, 200, &v)
	return &v
}

// put writes records as they are.
func (k *kit) put(rs ...api.Resource) {
	k.t.Helper()
	for len(rs) > 0 {
		n := min(len(rs), 60)
		d := store.NewDraft(system)
		for _, r := range rs[:n] {
			d.Create(r)
		}
		rev, err := d.Commit(context.Background(), k.kv)
		require.NoError(k.t, err)
		k.server.told(rev)
		rs = rs[n:]
	}
}

func (k *kit) join(name string) *api.AgentJoined {
	k.t.Helper()
	var out api.AgentJoined
	k.call("", http.MethodPost, "/v1/agents/join", api.AgentJoin{Name: name, Token: joinToken}, 200, &out)
	return &out
}

func vms(n int, change func(int, *api.VM)) []api.Resource {
	out := make([]api.Resource, n)
	for i := range out {
		vm := &api.VM{
			Meta:   api.Meta{ID: api.NewID(), Name: fmt.Sprintf("vm-%d", i), Project: "default", Created: time.Now().UTC(), Labels: map[string]string{"n": fmt.Sprint(i % 10)}},
			Spec:   api.VMSpec{VCPUs: 2, Memory: api.GiB, Image: api.NewID(), RootDisk: 10 * api.GiB, Pool: api.NewID(), NICs: []api.NIC{{Port: api.NewID(), Subnet: api.NewID()}}, Hostname: fmt.Sprintf("vm-%d", i)},
			Status: api.VMStatus{Phase: api.PhaseRunning, Agent: api.NewID(), AgentName: "node-1", Addresses: []string{"10.0.0.7"}, Volumes: []string{api.NewID()}, Observed: time.Now().UTC()},
		}
		if change != nil {
			change(i, vm)
		}
		out[i] = vm
	}
	return out
}
