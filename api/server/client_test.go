package server

import (
	"bytes"
	"context"
	"net/url"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/accounts"
	"github.com/nextstack/nextstack/api/client"
	"github.com/nextstack/nextstack/api/problem"
)

// The client and the server are written against one contract; here they speak with each other.
func TestClientAndServer(t *testing.T) {
	k := newKit(t)
	password := resetPassword(t, k)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	connect := func() *client.Client {
		u, err := url.Parse(k.http.URL)
		require.NoError(t, err)
		port, err := strconv.Atoi(u.Port())
		require.NoError(t, err)
		c, err := client.New(client.Config{Host: u.Hostname(), Port: port})
		require.NoError(t, err)
		return c
	}
	c := connect()
	_, err := c.Health(ctx)
	require.NoError(t, err)
	_, err = client.List[*api.VPC](ctx, c, "default", client.ListOptions{})
	require.True(t, problem.Is(err, problem.Unauthenticated), "%v", err)
	l, err := c.Login(ctx, api.Login{User: accounts.AdminName, Password: password})
	require.NoError(t, err)
	c.SetToken(l.Token)

	// A write, its operation, its events.
	before, err := client.List[*api.VPC](ctx, c, "default", client.ListOptions{})
	require.NoError(t, err)
	op, err := client.Create(ctx, c, "default", &api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}, client.Write{})
	require.NoError(t, err)
	_, err = client.Create(ctx, c, "default", &api.VPCCreate{Name: "net", CIDR: "10.0.0.0/16"}, client.Write{})
	require.True(t, problem.Is(err, problem.Conflict), "%v", err)
	_, err = client.Create(ctx, c, "default", &api.VPCCreate{Name: "Net", CIDR: "10.0.0.0/99"}, client.Write{})
	require.Len(t, problem.From(err).Fields, 2)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		k.settle(op.ID, api.OpSucceeded)
	}()
	op, err = c.Wait(ctx, op.ID, client.WaitOptions{})
	<-settled
	require.NoError(t, err)
	require.Equal(t, api.OpSucceeded, op.State)
	var phases []string
	for e, err := range c.Events(ctx, client.EventOptions{Since: before.Revision, Kinds: []api.Kind{api.KindVPC}, Project: "default"}) {
		require.NoError(t, err)
		require.Equal(t, "net", e.Name)
		if phases = append(phases, e.ID); len(phases) == 2 {
			break
		}
	}
	v, err := client.Get[*api.VPC](ctx, c, "default", "net")
	require.NoError(t, err)
	require.Equal(t, api.PhaseReady, v.Status.Phase)
	_, err = client.Change(ctx, c, "default", "net", &api.VPCUpdate{Labels: &map[string]string{"a": "b"}}, client.Write{IfMatch: v.Revision - 1})
	require.True(t, problem.Is(err, problem.Precondition), "%v", err)
	_, err = c.Delete(ctx, api.KindVPC, "default", "net", client.Write{IfMatch: v.Revision})
	require.NoError(t, err)

	// Lists of many pages.
	k.put(vms(250, nil)...)
	n := 0
	for _, err := range client.All[*api.VM](ctx, c, "default", client.ListOptions{}) {
		require.NoError(t, err)
		n++
	}
	require.Equal(t, 250, n)
	_, err = c.StopVM(ctx, "default", "vm-1", api.VMStop{Force: true}, client.Write{})
	require.NoError(t, err)

	up, err := c.Upload(ctx, bytes.NewReader(make([]byte, 3<<20)), 3<<20, nil)
	require.NoError(t, err)
	require.EqualValues(t, 3<<20, up.Size)
	require.NoError(t, c.DeleteUpload(ctx, up.ID))

	// An agent.
	a := connect()
	_, err = a.Join(ctx, api.AgentJoin{Name: "node-1", Token: "wrong"})
	require.True(t, problem.Is(err, problem.Unauthenticated), "%v", err)
	j, err := a.Join(ctx, api.AgentJoin{Name: "node-1", Token: joinToken})
	require.NoError(t, err)
	a.SetToken(j.Credential)
	_, err = a.Report(ctx, j.ID, api.AgentReport{Sent: time.Now()})
	require.NoError(t, err)
	_, err = a.Seed(ctx, j.ID, api.NewID())
	require.True(t, problem.Is(err, problem.Forbidden), "%v", err)

	require.NoError(t, c.Logout(ctx))
	_, err = client.List[*api.VM](ctx, c, "default", client.ListOptions{})
	require.True(t, problem.Is(err, problem.Unauthenticated), "%v", err)
}
