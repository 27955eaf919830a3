package fleet

import (
	"context"
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/auth"
	"github.com/nextstack/nextstack/api/store"
)

// Exports reports whether an operation, which runs, exports a volume from an agent: then the agent may send what it makes of that
// under the operation's ID.
func (f *Fleet) Exports(ctx context.Context, h auth.Handle, agent, operation string) bool {
	if owns(h, agent) != nil || !api.IsUUID(operation) {
		return false
	}
	op, err := store.Get[api.Operation](ctx, f.KV, f.self, "", operation)
	if err != nil || op.Kind != api.OpVolumeExport || op.State.Ended() || op.Plan == nil {
		return false
	}
	var work api.VolumeExportWork
	return json.Unmarshal(op.Plan.Input, &work) == nil && work.Agent.ID == agent
}
