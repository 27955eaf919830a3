package server

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
)

// sse is an event as it came.
type sse struct {
	id, name string
	Event
}

// follow opens the stream and returns what comes. It is connected when follow returns.
func (k *kit) follow(query string, headers ...string) (events <-chan sse, stop func()) {
	k.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, k.http.URL+"/v1/events?"+query, nil)
	require.NoError(k.t, err)
	req.Header.Set("Authorization", "Bearer "+k.admin)
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := k.http.Client().Do(req)
	require.NoError(k.t, err)
	require.Equal(k.t, 200, res.StatusCode)
	require.Equal(k.t, "text/event-stream", res.Header.Get("Content-Type"))
	lines := bufio.NewReader(res.Body)
	first, err := lines.ReadString('\n')
	require.NoError(k.t, err)
	require.Equal(k.t, ": connected\n", first)
	out := make(chan sse)
	go func() {
		defer close(out)
		defer res.Body.Close()
		var e sse
		for {
			line, err := lines.ReadString('\n')
			if err != nil {
				return
			}
			key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			switch key {
			case "id":
				e.id = value
			case "event":
				e.name = value
			case "data":
				if err := json.Unmarshal([]byte(value), &e.Event); err != nil {
					return
				}
			case "":
				if e.name != "" {
					select {
					case out <- e:
					case <-ctx.Done():
						return
					}
				}
				e = sse{}
			}
		}
	}()
	k.t.Cleanup(cancel)
	return out, cancel
}

func (k *kit) next(events <-chan sse) sse {
	k.t.Helper()
	select {
	case e, ok := <-events:
		require.True(k.t, ok, "the stream has ended")
		return e
	case <-time.After(10 * time.Second):
		k.t.Fatal("no event came")
		return sse{}
	}
}

func TestEvents(t *testing.T) {
	k := newKit(t)
	events, _ := k.follow("kinds=vpcs&project=default")
	v := k.vpc("net") // the operation's events are not wanted
	made, ready := k.next(events), k.next(events)
	require.Equal(t, "put", made.name)
	require.Equal(t, api.KindVPC, made.Kind)
	require.Equal(t, v.ID, made.ID)
	require.Equal(t, "net", made.Name)
	require.Equal(t, fmt.Sprint(made.Revision), made.id)
	require.Equal(t, "creating", made.Resource.(map[string]any)["status"].(map[string]any)["phase"])
	require.Equal(t, v.Revision, ready.Revision)

	var op api.Operation
	k.call(k.admin, http.MethodDelete, "/v1/projects/default/vpcs/net", nil, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.next(events)
	gone := k.next(events)
	require.Equal(t, "delete", gone.name)
	require.True(t, gone.Deleted)
	require.Nil(t, gone.Resource)
	require.Equal(t, v.ID, gone.ID)
	require.Equal(t, "default", gone.Project)
}

// Nothing but resources is ever told, and of operations only what the public may see.
func TestEventsTellNoSecrets(t *testing.T) {
	k := newKit(t)
	events, _ := k.follow("")
	k.login(resetPassword(t, k))
	_, err := k.kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey("x"), Value: []byte("{}")}}})
	require.NoError(t, err)
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, nil)
	e := k.next(events)
	require.Equal(t, api.KindOperation, e.Kind, "%+v", e)
	r := e.Resource.(map[string]any)
	require.NotContains(t, r, "plan")
	require.NotContains(t, r, "requestHash")
	require.Contains(t, r["url"], "http://temporal.example/")
}

// A stream that breaks off and goes on gives every event once and none too few, whole revisions included.
func TestEventsResume(t *testing.T) {
	k := newKit(t)
	var first page[api.VM]
	k.call(k.admin, http.MethodGet, vmList, nil, 200, &first)
	const rounds, together = 40, 5
	go func() {
		for i := range rounds { // five VMs in one revision, with an operation between
			k.put(vms(together, func(n int, vm *api.VM) { vm.Name = fmt.Sprintf("r%d-%d", i, n) })...)
		}
	}()
	seen := map[string]int{}
	last := ""
	for got := 0; got < rounds*together; {
		headers := []string{}
		if last != "" {
			headers = []string{"Last-Event-ID", last}
		}
		events, stop := k.follow(fmt.Sprintf("kinds=vms&since=%d", first.Revision), headers...)
		var open []string // of the revision whose id has not come
		for range 13 {
			e := k.next(events)
			open = append(open, e.Name)
			if e.id != "" { // a client that breaks off here goes on behind all of open
				last = e.id
				for _, name := range open {
					seen[name]++
				}
				got, open = got+len(open), nil
				if got == rounds*together {
					break
				}
			}
		}
		stop()
	}
	require.Len(t, seen, rounds*together)
	for name, n := range seen {
		require.Equal(t, 1, n, name)
	}
}

// While nothing comes that is wanted, the place to resume from moves along all the same.
func TestHeartbeats(t *testing.T) {
	k := newKit(t)
	k.server.heartbeat = 10 * time.Millisecond
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, k.http.URL+"/v1/events?kinds=vpcs", nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+k.admin)
	res, err := k.http.Client().Do(req)
	require.NoError(t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	until := func(line string) {
		for lines.Scan() {
			if lines.Text() == line {
				return
			}
		}
		t.Fatal("the stream ended before " + line)
	}
	until(": connected")
	until(fmt.Sprintf("id: %d", k.cache.Revision()))
	until(": heartbeat")
	var op api.Operation
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, &op)
	until(fmt.Sprintf("id: %d", op.Revision))
}

func TestEventsThatAreForgotten(t *testing.T) {
	k := newKit(t)
	var first page[api.VM]
	k.call(k.admin, http.MethodGet, vmList, nil, 200, &first)
	k.put(vms(5000, nil)...)
	k.call(k.admin, http.MethodGet, vmList, nil, 200, nil)
	r := k.send(k.admin, http.MethodGet, fmt.Sprintf("/v1/events?since=%d", first.Revision), nil)
	require.Equal(t, 409, r.StatusCode)
	d := r.problem(t)
	require.Equal(t, problem.Conflict, d.Code)
	require.Contains(t, d.Fix, "list again")
}

func TestStreamsAndWaitsEndWithTheServer(t *testing.T) {
	k := newKit(t)
	events, _ := k.follow("")
	k.server.end()
	for range events {
		t.Fatal("an event came")
	}
	k.call(k.admin, http.MethodPost, "/v1/noop?wait=60s", nil, 202, nil)
}
