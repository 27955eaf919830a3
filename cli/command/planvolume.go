package command

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

func noPoolNamed() error {
	return problem.New(problem.Invalid, "no pool is named").Try("say which one: --pool NAME")
}

// planMigrateVolume prints how a volume would go to another pool.
func (a *app) planMigrateVolume(ctx context.Context, ref string, r api.VolumeMigrate) error {
	if r.Pool == "" {
		return noPoolNamed()
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	d, err := c.PlanMigrateVolume(ctx, a.project, ref, r)
	if err != nil {
		return err
	}
	return a.printDry(ctx, d)
}

// writeMoving says how a volume goes to another pool.
func writeMoving(w io.Writer, m *api.VolumeMoving) error {
	has := "no VM has it"
	switch {
	case m.VM != nil && m.Live:
		has = fmt.Sprintf("vm %s has it, and runs on meanwhile", m.VM.Name)
	case m.VM != nil:
		has = fmt.Sprintf("vm %s has it, and does not run", m.VM.Name)
	}
	takes := "as fast as both pools are, or as --bandwidth allows"
	if m.Seconds > 0 {
		takes = fmt.Sprintf("%s at that bandwidth if all of it is in use; longer if the pools are slower", shortDuration(time.Duration(m.Seconds)*time.Second))
	}
	return writeTable(w, [][]string{
		{"volume:", m.Volume.Name},
		{"from:", "pool " + m.From},
		{"to:", "pool " + m.To},
		{"meanwhile:", has},
		{"copied on:", dash(m.Node)},
		{"size:", formatSize(m.Size) + " at most"},
		{"takes:", takes},
	})
}
