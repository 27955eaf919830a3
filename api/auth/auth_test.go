package auth

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

var allKinds = []api.Kind{
	api.KindProject, api.KindImage, api.KindPool, api.KindVolume, api.KindVPC, api.KindSubnet, api.KindPort,
	api.KindSecurityGroup, api.KindVM, api.KindAgent, api.KindOperation, api.KindUser, api.KindToken,
}

func TestPolicy(t *testing.T) {
	agentMay := map[Action][]api.Kind{
		Read:  {api.KindVM, api.KindImage, api.KindPool, api.KindAgent},
		Write: {api.KindAgent},
	}
	admin := Authenticated(Principal{Name: "root", Role: Admin})
	agent := Authenticated(Principal{Name: "node-1", Role: Agent})
	for _, kind := range allKinds {
		for _, action := range []Action{Read, Write} {
			require.NoError(t, admin.Check(action, kind, "default"), "admin %s %s", action, kind)
			require.NoError(t, ControlPlane("test").Check(action, kind, "default"))
			err := agent.Check(action, kind, "default")
			if contains(agentMay[action], kind) {
				require.NoError(t, err, "agent %s %s", action, kind)
			} else {
				require.True(t, problem.Is(err, problem.Forbidden), "agent %s %s", action, kind)
			}
		}
	}
}

func TestHandlesThatAllowNothing(t *testing.T) {
	for name, h := range map[string]Handle{
		"zero value":     {},
		"no name":        Authenticated(Principal{Role: Admin}),
		"no role":        Authenticated(Principal{Name: "x"}),
		"unknown role":   Authenticated(Principal{Name: "x", Role: "root"}),
		"system by mint": Authenticated(Principal{Name: "x", Role: System}),
	} {
		for _, kind := range allKinds {
			require.True(t, problem.Is(h.Check(Read, kind, ""), problem.Forbidden), "%s: %s", name, kind)
		}
	}
}

func contains(kinds []api.Kind, k api.Kind) bool {
	for _, x := range kinds {
		if x == k {
			return true
		}
	}
	return false
}
