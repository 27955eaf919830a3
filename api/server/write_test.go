package server

import (
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestCreateAnswersWhereThingsAre(t *testing.T) {
	k := newKit(t)
	var op api.Operation
	r := k.call(k.admin, http.MethodPost, "/v1/projects/default/vpcs", api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}, 202, &op)
	require.Equal(t, "/v1/operations/"+op.ID, r.Header.Get("Location"))
	require.Equal(t, api.OpAccepted, op.State)
	require.Equal(t, "admin", op.Requester)
	require.Equal(t, "http://temporal.example/"+op.ID, op.URL)
	require.Nil(t, op.Plan)
	require.Empty(t, op.RequestHash)
	k.call(k.admin, http.MethodGet, r.Header.Get("Location"), nil, 200, nil)
	var v api.VPC
	k.call(k.admin, http.MethodGet, r.Header.Get("Content-Location"), nil, 200, &v)
	require.Equal(t, "net", v.Name)
	require.Equal(t, op.ID, v.Operation)
	r = k.call(k.admin, http.MethodDelete, "/v1/projects/default/vpcs/net", nil, 409, nil)
	require.Equal(t, problem.Locked, r.problem(t).Code)
}

func TestIfMatch(t *testing.T) {
	k := newKit(t)
	k.vpc("net")
	const path = "/v1/projects/default/vpcs/net"
	read := k.call(k.admin, http.MethodGet, path, nil, 200, nil)
	patch := map[string]any{"labels": map[string]string{"a": "b"}}
	var op api.Operation
	k.call(k.admin, http.MethodPatch, path, patch, 202, &op, "If-Match", read.Header.Get("ETag"))
	k.settle(op.ID, api.OpSucceeded)
	for _, method := range []string{http.MethodPatch, http.MethodDelete} {
		var body any
		if method == http.MethodPatch {
			body = patch
		}
		r := k.call(k.admin, method, path, body, 412, nil, "If-Match", read.Header.Get("ETag"))
		require.Equal(t, problem.Precondition, r.problem(t).Code)
	}
	var v api.VPC
	read = k.call(k.admin, http.MethodGet, path, nil, 200, &v)
	require.Equal(t, "b", v.Labels["a"])
	k.call(k.admin, http.MethodDelete, path, nil, 202, nil, "If-Match", read.Header.Get("ETag"))
}

func TestIdempotencyKey(t *testing.T) {
	k := newKit(t)
	const path = "/v1/projects/default/vpcs"
	var first, second api.Operation
	k.call(k.admin, http.MethodPost, path, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}, 202, &first, "Idempotency-Key", "once")
	r := k.call(k.admin, http.MethodPost, path, api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}, 202, &second, "Idempotency-Key", "once")
	require.Equal(t, first.ID, second.ID)
	require.NotEmpty(t, r.Header.Get("Content-Location"))
	r = k.call(k.admin, http.MethodPost, path, api.VPCCreate{Name: "net", CIDR: "10.1.0.0/16"}, 422, nil, "Idempotency-Key", "once")
	require.Equal(t, problem.Mismatch, r.problem(t).Code)
}

func TestWait(t *testing.T) {
	k := newKit(t)
	var op api.Operation
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, &op)

	// It answers in the moment the operation ends, not when the time is over.
	type result struct {
		op   api.Operation
		took time.Duration
	}
	got := make(chan result)
	go func() {
		var res result
		start := time.Now()
		k.call(k.admin, http.MethodGet, "/v1/operations/"+op.ID+"?wait=30s", nil, 200, &res.op)
		res.took = time.Since(start)
		got <- res
	}()
	select {
	case <-got:
		t.Fatal("it did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	k.settle(op.ID, api.OpSucceeded)
	res := <-got
	require.Equal(t, api.OpSucceeded, res.op.State)
	require.Less(t, res.took, 10*time.Second)
	k.call(k.admin, http.MethodGet, "/v1/operations/"+op.ID+"?wait=30s", nil, 200, nil) // has ended: at once

	// When the time is over, the answer is the operation as it is.
	start := time.Now()
	k.call(k.admin, http.MethodPost, "/v1/noop?wait=200ms", nil, 202, &op)
	require.Equal(t, api.OpAccepted, op.State)
	require.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
}

// A wait goes on when the store cannot tell any more what came after the operation was accepted.
func TestWaitAfterCompaction(t *testing.T) {
	k := newKit(t)
	var op, done api.Operation
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, &op)
	k.vpc("net")
	k.kv.Compact(k.cache.Revision())
	got := make(chan struct{})
	go func() {
		defer close(got)
		k.call(k.admin, http.MethodGet, "/v1/operations/"+op.ID+"?wait=30s", nil, 200, &done)
	}()
	select {
	case <-got:
		t.Fatal("it did not wait")
	case <-time.After(100 * time.Millisecond):
	}
	k.settle(op.ID, api.OpSucceeded)
	<-got
	require.Equal(t, api.OpSucceeded, done.State)
}

func TestSteeringOperations(t *testing.T) {
	k := newKit(t)
	var op, again api.Operation
	k.call(k.admin, http.MethodPost, "/v1/noop", nil, 202, &op)
	k.call(k.admin, http.MethodPost, "/v1/operations/"+op.ID+"/cancel", nil, 202, nil)
	k.call(k.admin, http.MethodPost, "/v1/operations/"+op.ID+"/resume", nil, 202, nil)
	require.Equal(t, []string{"cancel " + op.ID, "resume " + op.ID}, k.engine.told)
	k.call(k.admin, http.MethodPost, "/v1/operations/"+op.ID+"/retry", nil, 409, nil)
	k.settle(op.ID, api.OpFailed)
	r := k.call(k.admin, http.MethodPost, "/v1/operations/"+op.ID+"/cancel", nil, 409, nil)
	require.Equal(t, problem.Conflict, r.problem(t).Code)
	k.call(k.admin, http.MethodPost, "/v1/operations/"+op.ID+"/retry", nil, 202, &again)
	require.Equal(t, op.ID, again.RetryOf)
}

func TestPowerWithAndWithoutBody(t *testing.T) {
	k := newKit(t)
	k.put(vms(2, nil)...)
	var op api.Operation
	k.call(k.admin, http.MethodPost, vmList+"/vm-0/stop", nil, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPost, vmList+"/vm-0/start", nil, 202, &op)
	k.settle(op.ID, api.OpSucceeded)
	k.call(k.admin, http.MethodPost, vmList+"/vm-0/reboot", api.VMStop{Force: true}, 202, nil)
	k.call(k.admin, http.MethodPost, vmList+"/vm-1/start", "{}", 202, nil)
}

func TestHealth(t *testing.T) {
	k := newKit(t)
	var h Health
	k.call("", http.MethodGet, "/v1/health", nil, 200, &h)
	require.Equal(t, Health{Status: "ok", Version: "1.2.3"}, h)
	require.NoError(t, k.kv.Close())
	r := k.call("", http.MethodGet, "/v1/health", nil, 503, nil)
	require.Equal(t, problem.Unavailable, r.problem(t).Code)
}
