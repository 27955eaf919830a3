package client

import (
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func TestDryRunsAskWithoutAKeyAndWritesWithOne(t *testing.T) {
	ctx := t.Context()
	c, h := serve(t, nil, answer(200, api.DryRun{Kind: "asked"}))
	create := &api.VMCreate{Name: "web", VCPUs: 1, Memory: 64 * api.MiB, Image: "tiny"}
	for path, ask := range map[string]func() (*api.DryRun, error){
		"/v1/projects/p/vms":             func() (*api.DryRun, error) { return c.PlanVM(ctx, "p", create) },
		"/v1/projects/p/vms/web/migrate": func() (*api.DryRun, error) { return c.PlanMigrate(ctx, "p", "web", api.VMMigrate{}) },
		"/v1/projects/p/volumes/data/migrate": func() (*api.DryRun, error) {
			return c.PlanMigrateVolume(ctx, "p", "data", api.VolumeMigrate{Pool: "fast"})
		},
		"/v1/agents/n1/drain": func() (*api.DryRun, error) { return c.PlanDrain(ctx, "n1", api.HostDrain{}) },
		"/v1/agents/balance":  func() (*api.DryRun, error) { return c.PlanBalance(ctx, api.HostBalance{}) },
	} {
		d, err := ask()
		require.NoError(t, err)
		require.Equal(t, "asked", d.Kind)
		seen := h.seen()
		r := seen[len(seen)-1]
		require.Equal(t, path, r.URL.Path)
		require.Equal(t, "true", r.URL.Query().Get("dryRun"))
		require.Equal(t, http.MethodPost, r.Method)
	}

	c, h = serve(t, nil, answer(202, api.Operation{Kind: "accepted"}))
	w := Write{Key: "k"}
	for path, ask := range map[string]func() (*api.Operation, error){
		"/v1/projects/default/vms/web/migrate": func() (*api.Operation, error) { return c.MigrateVM(ctx, "", "web", api.VMMigrate{}, w) },
		"/v1/agents/n1/drain":                  func() (*api.Operation, error) { return c.DrainHost(ctx, "n1", api.HostDrain{}, w) },
		"/v1/agents/balance":                   func() (*api.Operation, error) { return c.BalanceHosts(ctx, api.HostBalance{}, w) },
		"/v1/agents/n1/recover":                func() (*api.Operation, error) { return c.RecoverHost(ctx, "n1", api.HostRecover{ConfirmOff: true}, w) },
		"/v1/agents/n1":                        func() (*api.Operation, error) { return Change(ctx, c, "", "n1", &api.AgentUpdate{}, w) },
		"/v1/projects/default/vms/web":         func() (*api.Operation, error) { return Change(ctx, c, "", "web", &api.VMUpdate{}, w) },
		"/v1/projects/default/vm-groups": func() (*api.Operation, error) {
			return Create(ctx, c, "", &api.VMGroupCreate{Name: "g", VMGroupSpec: api.VMGroupSpec{Policy: api.Affinity}}, w)
		},
	} {
		_, err := ask()
		require.NoError(t, err)
		seen := h.seen()
		r := seen[len(seen)-1]
		require.Equal(t, path, r.URL.Path)
		require.Equal(t, "k", r.Header.Get("Idempotency-Key"))
	}
}

func TestWhatCannotBeIsNotSent(t *testing.T) {
	ctx := t.Context()
	c, h := serve(t, nil, answer(500, nil))
	for _, err := range []error{
		second(c.PlanVM(ctx, "", &api.VMCreate{})), second(c.PlanMigrate(ctx, "", "x", api.VMMigrate{Timeout: -1})), second(c.PlanMigrateVolume(ctx, "", "x", api.VolumeMigrate{})), second(c.PlanDrain(ctx, "x", api.HostDrain{Parallel: -1})),
		second(c.PlanBalance(ctx, api.HostBalance{Moves: -1})), second(c.MigrateVM(ctx, "", "x", api.VMMigrate{Timeout: -1}, Write{})),
		second(c.DrainHost(ctx, "x", api.HostDrain{Parallel: -1}, Write{})), second(c.BalanceHosts(ctx, api.HostBalance{Moves: -1}, Write{})),
		second(c.RecoverHost(ctx, "x", api.HostRecover{}, Write{})),
	} {
		require.True(t, problem.Is(err, problem.Invalid), "%v", err)
	}
	require.Empty(t, h.seen())
}

func second[T any](_ T, err error) error { return err }
