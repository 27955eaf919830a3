package fence

import (
	"context"
	"io"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.temporal.io/sdk/testsuite"

	"github.com/nextstack/nextstack/activities"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/api/store"
	"github.com/nextstack/nextstack/workflows/steps"
)

func TestStep(t *testing.T) {
	kv := store.NewMemory()
	vault, err := store.OpenVault(filepath.Join(t.TempDir(), "keys"))
	require.NoError(t, err)
	a := &api.Agent{Meta: api.Meta{ID: api.NewID(), Name: "node-1", Operation: api.NewID()}, Status: api.AgentStatus{Phase: api.PhaseSuspect}}
	token := steps.Token{Operation: a.Operation}
	put := func() {
		t.Helper()
		d := store.NewDraft(auth.ControlPlane("test"))
		if a.Revision == 0 {
			d.Create(a)
		} else {
			d.Update(a)
		}
		a.Revision, err = d.Commit(context.Background(), kv)
		require.NoError(t, err)
	}
	put()

	fake := &Fake{}
	fake.On()
	var asked Device
	var suite testsuite.WorkflowTestSuite
	env := suite.NewTestActivityEnvironment()
	host := &activities.Host{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	RegisterWith(env, host, kv, vault, func(d Device) (Driver, error) { asked = d; return fake, nil })
	run := func() (proof api.Proof, err error) {
		v, err := env.ExecuteActivity(steps.FenceNode.Name, steps.Envelope[steps.NodeRef]{Token: token, In: steps.NodeRef{Agent: a.ID}})
		if err != nil {
			return proof, steps.FromActivity("fence", "", err)
		}
		return proof, v.Get(&proof)
	}
	_, err = run()
	require.Equal(t, problem.Unsupported, problem.KindOf(err), "%v", err)

	a.Spec.Fence = &api.Fence{Driver: api.FenceIPMI, Address: "10.0.0.1", User: "fence"}
	put()
	_, err = run()
	require.ErrorContains(t, err, "the password", "it is gone")
	sealed, err := vault.Seal("open-sesame", a.ID)
	require.NoError(t, err)
	_, err = kv.Commit(t.Context(), store.Tx{Puts: []store.Put{{Key: store.SecretKey(a.ID), Value: sealed}}})
	require.NoError(t, err)

	fake.Kill(true)
	_, err = run()
	require.Equal(t, problem.Unavailable, problem.KindOf(err), "%v", err)
	require.NotContains(t, err.Error(), "open-sesame")
	fake.Kill(false)
	for range 2 {
		proof, err := run()
		require.NoError(t, err)
		require.Equal(t, api.ProofFence, proof.Kind)
		require.Contains(t, proof.Detail, "10.0.0.1")
	}
	require.Equal(t, Device{Driver: api.FenceIPMI, Address: "10.0.0.1", User: "fence", Password: "open-sesame"}, asked)

	fake.On()
	a.Status.Phase = api.PhaseReady // it is back
	put()
	_, err = run()
	require.Equal(t, problem.Stale, problem.KindOf(err), "%v", err)
	on, err := fake.Status(t.Context())
	require.NoError(t, err)
	require.True(t, on)
}
