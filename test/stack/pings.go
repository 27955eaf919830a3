package stack

import (
	"context"
	"fmt"
	"os/exec"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/test/pings"
)

// Pings is a ping that runs.
type Pings = pings.Pings

// StartPings begins to ping the address every 20 ms, with the address of a port, from the given host. That host must not be
// one that is about to lose its power. It returns when the first answer is there.
func (s *Stack) StartPings(ctx context.Context, from *Host, p *api.Port, bits int, address string) (*Pings, error) {
	probe := func(argv ...string) []string {
		return append([]string{s.script("probe.sh"), from.Name, p.ID, p.Spec.MAC, fmt.Sprintf("%s/%d", p.Spec.Address, bits)}, argv...)
	}
	if err := Poll(ctx, 200*time.Millisecond, func() error {
		_, err := command(ctx, environment(s.sandbox...), probe("ping", "-n", "-c", "1", "-W", "1", address)...)
		return err
	}); err != nil {
		return nil, err
	}
	argv := probe(pings.Args(address)...)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), argv[0], argv[1:]...)
	cmd.Env = environment(s.sandbox...)
	return pings.Start(ctx, cmd, s.path("log"))
}
