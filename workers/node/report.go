package node

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nextstack/nextstack/activities/network"
	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/steps"
)

// Timing of reports.
const (
	reportTimeout = 10 * time.Second
	// lookTimeout is short enough for the server not to suspect a node whose libvirt hangs: with what else there is to do, and
	// the pause between two reports, it has to stay below fleet.SilentAfter.
	lookTimeout = 4 * time.Second
	// settleDown lets a burst of events become one report.
	settleDown = 20 * time.Millisecond
	// switchEvery is how often the switch is asked about itself; it hardly ever changes.
	switchEvery = time.Minute
	poolTimeout = 2 * time.Second
)

// switchFacts are what the node's switch last said of itself.
type switchFacts struct {
	mu    sync.Mutex
	info  network.LocalInfo
	known bool
	asked time.Time
}

// userspace reports whether guests must not leave work to their NICs. As long as that is not known they must not: it costs
// them speed, and the contrary would cost them their network.
func (s *switchFacts) userspace() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.known || s.info.UserspaceDatapath
}

func (s *switchFacts) get() (network.LocalInfo, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.info, s.known
}

// refresh asks the switch if it is time to.
func (s *switchFacts) refresh(ctx context.Context, sw Switch) error {
	s.mu.Lock()
	fresh := s.known && time.Since(s.asked) < switchEvery
	s.mu.Unlock()
	if fresh {
		return nil
	}
	info, err := sw.Local(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.info, s.known, s.asked = info, true, time.Now()
	return nil
}

// reporter tells the server what there is.
type reporter struct {
	*agent
	id    *identity
	pools map[string]steps.PoolOnNode // that the last answer named
	last  *api.AgentReport            // that was complete
	late  map[string]measure          // of pools whose directory did not answer in time
	wrong map[string]string           // what was last said to be wrong with pools
	said  map[string]string           // what was logged last, by subject

	keeping chan struct{} // closed when the last keep has come back

	transfer transferPoint
	every    time.Duration // between reports
}

// report reports every now and then, and at once when something happens, until ctx is done or the server does not know us.
func (a *agent) report(ctx context.Context, id *identity) error {
	r := &reporter{agent: a, id: id, pools: map[string]steps.PoolOnNode{}, said: map[string]string{}}
	events := a.driver.Events(ctx)
	r.every = a.cfg.ReportEvery
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		every := r.every
		more, err := r.once(ctx)
		if err != nil {
			return err
		}
		if r.every != every {
			tick.Reset(r.every)
		}
		if more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if a.trim != nil {
				r.say("consoles", a.trim())
			}
		case <-events:
			pause(ctx, settleDown)
			for drained := false; !drained; {
				select {
				case _, open := <-events:
					drained = !open
				default:
					drained = true
				}
			}
		}
	}
}

// once makes and sends one report, and does what the answer says. It wants another one at once if the answer named pools that
// were not in it, or VMs that had to be stopped. Its error is
// errForgotten or nil: whoever is away comes back.
func (r *reporter) once(ctx context.Context) (more bool, err error) {
	began := time.Now()
	stopped := r.lease.stopped(ctx)
	report := r.look(ctx)
	if report == nil || ctx.Err() != nil {
		return false, nil
	}
	sctx, cancel := context.WithTimeout(ctx, reportTimeout)
	defer cancel()
	r.lease.tell(sctx, report)
	report.Stopped = stopped
	sent := r.lease.now()
	orders, err := r.api.Report(sctx, r.id.ID, *report)
	if ctx.Err() != nil {
		return false, nil
	}
	r.say("server", err)
	if problem.Is(err, problem.Unauthenticated) || problem.Is(err, problem.NotFound) {
		if r.canJoin() {
			return false, errForgotten
		}
		r.log.Error("THE SERVER DOES NOT KNOW THIS AGENT, and there is no join token to join again with", "id", r.id.ID, "server", r.api.Address(),
			"fix", "start the agent with a join token, or bring the server's data back", "error", err)
	}
	if err != nil {
		return false, nil
	}
	more = r.obey(ctx, began, sent, report, orders)
	r.every = pace(r.cfg.ReportEvery, orders)
	pools := map[string]steps.PoolOnNode{}
	for _, p := range orders.Pools {
		pools[p.ID] = steps.PoolOnNode{Pool: p.ID, Type: p.Type, Path: p.Path, Shared: p.Shared, Source: p.Source}
		_, known := r.pools[p.ID]
		more = more || !known
	}
	r.pools = pools
	r.keep(ctx)
	return more, nil
}

// look makes a report. While libvirt is away it is the last one that was complete, with the reason: the VMs have not gone,
// they are only not seen. If there never was one, it tells the reason alone: the agent is alive, and its lease must go on. Nil
// if ctx is done.
func (r *reporter) look(alive context.Context) *api.AgentReport {
	ctx, cancel := context.WithTimeout(alive, lookTimeout)
	defer cancel()
	report := api.AgentReport{Sent: time.Now().UTC()} // before looking: what changes meanwhile is newer than the report
	r.say("switch", r.facts.refresh(ctx, r.sw))
	var err error
	if report.Inventory, err = r.driver.Inventory(ctx); err == nil {
		report.VMs, err = r.observe(ctx)
	}
	r.say("libvirt", err)
	switch {
	case err == nil:
		r.last = &report
	case alive.Err() != nil:
		return nil
	case r.last == nil:
		report = api.AgentReport{Sent: report.Sent, Error: err.Error(), VMs: []api.VMObservation{}}
		return &report
	default:
		report = *r.last
		report.Error = err.Error()
	}
	r.complete(alive, &report.Inventory)
	return &report
}

// observe lists the domains that are ours.
func (r *reporter) observe(ctx context.Context) ([]api.VMObservation, error) {
	domains, err := r.driver.List(ctx)
	out := make([]api.VMObservation, 0, len(domains))
	for _, d := range domains {
		if d.Ours {
			out = append(out, api.VMObservation{ID: d.ID, Phase: d.Phase, Reason: d.Reason})
		}
	}
	return out, err
}

// complete adds what libvirt does not know.
func (r *reporter) complete(ctx context.Context, inv *api.Inventory) {
	versions := map[string]string{}
	for k, v := range inv.Versions {
		versions[k] = v
	}
	if r.cfg.Version != "" {
		versions["agent"] = r.cfg.Version
	}
	if info, known := r.facts.get(); known {
		inv.OVNChassis, inv.UserspaceDP = info.ChassisID, info.UserspaceDatapath
		if info.Version != "" {
			versions["ovs"] = info.Version
		}
	}
	inv.Versions, inv.Pools = versions, coarsely(r.usage(ctx))
	inv.Peer.Transfer = r.transfer.get(ctx, r.agent.peers)
}

// measure is a pool that is being measured.
type measure struct {
	pool steps.PoolOnNode
	got  chan api.PoolUsage
}

// usage measures the pools, all at once. A directory that does not answer, as a dead network file system does, holds up nothing
// else, and is not asked again until it has. What was wrong with it before is wrong with it until then.
func (r *reporter) usage(ctx context.Context) []api.PoolUsage {
	out := make([]api.PoolUsage, 0, len(r.pools))
	asked := make([]measure, 0, len(r.pools))
	for _, p := range r.pools {
		m, late := r.late[p.Pool]
		if !late {
			m = measure{p, make(chan api.PoolUsage, 1)}
			go func() { m.got <- r.agent.pools.Usage(ctx, p) }()
		}
		asked = append(asked, m)
	}
	r.late = map[string]measure{}
	limit, cancel := context.WithTimeout(ctx, poolTimeout)
	defer cancel()
	said := map[string]string{}
	for _, m := range asked {
		u := api.PoolUsage{Pool: m.pool.Pool}
		select {
		case u = <-m.got:
		default:
			select {
			case u = <-m.got:
			case <-limit.Done():
				r.late[u.Pool] = m
				if u.Error = r.wrong[u.Pool]; u.Error == "" {
					u.Error = "pool at " + m.pool.Path + " does not answer"
				}
			}
		}
		said[u.Pool] = u.Error
		out = append(out, u)
	}
	r.wrong = said
	slices.SortFunc(out, func(a, b api.PoolUsage) int { return strings.Compare(a.Pool, b.Pool) })
	return out
}

// say logs the error of a subject when it begins, changes and ends, but not each time.
func (r *reporter) say(subject string, err error) {
	now := ""
	if err != nil {
		now = err.Error()
	}
	was := r.said[subject]
	r.said[subject] = now
	switch {
	case now != "" && now != was:
		r.log.Warn("trouble, trying on", "with", subject, "error", err)
	case now == "" && was != "":
		r.log.Info("all is well again", "with", subject)
	}
}
