package stack

import "context"

// EndGuardian has the guardian of the node end, which it does only while there is no HA guest. An agent that runs without
// --guard=false, or is started so, starts another.
func (h *Host) EndGuardian(ctx context.Context) error {
	_, err := h.Do(ctx, h.Agent.argv[h.Agent.program], "agent", "guard", "--stop", "--data-dir", h.dataDir())
	return err
}
