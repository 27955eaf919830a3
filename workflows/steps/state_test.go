package steps_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/workflows/steps"
)

func TestAgentHasAllPools(t *testing.T) {
	a := steps.AgentPools{Pools: []steps.PoolOnNode{{Pool: "p1"}, {Pool: "p2"}}}
	require.True(t, a.Has(nil))
	require.True(t, a.Has([]string{"p2", "p1", "p1"}))
	require.False(t, a.Has([]string{"p1", "p3"}))
	require.False(t, steps.AgentPools{}.Has([]string{"p1"}))
}
