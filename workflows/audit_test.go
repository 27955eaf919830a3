package workflows

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/nextstack/nextstack/workflows/steps"
)

// TestTheCheckpointOfAnAuditStaysSmall: a journal that the store refuses for its size would hold the audit up for ever.
func TestTheCheckpointOfAnAuditStaysSmall(t *testing.T) {
	var s auditState
	for range 20_000 {
		s.Worlds.Nodes = append(s.Worlds.Nodes, steps.NodeWorld{Agent: "a", Files: make([]steps.FileFound, 1)})
	}
	b, err := json.Marshal(s)
	require.NoError(t, err)
	require.Less(t, len(b), 10_000)
}
