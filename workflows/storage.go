package workflows

import (
	"encoding/json"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// imageState is what the steps of the image operations share.
type imageState struct {
	Import steps.ImageImport   `json:"import"`
	Made   steps.ImageImported `json:"made"`
}

func startImport(op steps.Op) (s imageState, err error) {
	err = json.Unmarshal(op.Input, &s.Import)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

// ImageImport brings an image into the server's image store.
var ImageImport = saga.Table[imageState]{
	Kind: api.OpImageImport, Start: startImport,
	Steps: []saga.Step[imageState]{
		{Name: "import", Where: control, Do: importImage, Undo: dropImport},
	},
	Result: func(s *imageState) (json.RawMessage, error) { return json.Marshal(s.Made) },
}

func importImage(r *saga.Run, s *imageState) (err error) {
	s.Made, err = steps.ImportImage.Call(r, "", s.Import)
	return err
}

func dropImport(r *saga.Run, s *imageState) error {
	_, err := steps.RemoveImage.Call(r, "", steps.ImageFile{Image: s.Import.Image})
	return err
}

// ImageUpdate changes nothing but the record, which is done where all operations begin and end.
var ImageUpdate = saga.Table[steps.Nothing]{Kind: api.OpImageUpdate, Start: nothing}

// exportState is what the steps of an export share.
type exportState struct {
	Export steps.ImageExport   `json:"export"`
	Made   steps.ImageExported `json:"made"`
}

// ImageExport makes an image in another format on the server, to be downloaded. It goes by itself after a while.
var ImageExport = saga.Table[exportState]{
	Kind: api.OpImageExport, Start: startExport,
	Steps: []saga.Step[exportState]{
		{Name: "export", Where: control, Do: exportImage, Undo: dropExport},
	},
	Result: func(s *exportState) (json.RawMessage, error) { return json.Marshal(s.Made) },
}

func startExport(op steps.Op) (s exportState, err error) {
	err = json.Unmarshal(op.Input, &s.Export)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func exportImage(r *saga.Run, s *exportState) (err error) {
	s.Made, err = steps.ExportImage.Call(r, "", s.Export)
	return err
}

func dropExport(r *saga.Run, s *exportState) error {
	_, err := steps.RemoveExport.Call(r, "", s.Export)
	return err
}

// ImageDelete removes an image that nothing needs, first from the pools of the nodes and then from the server. Removing the
// first copy loses nothing, but a cancelled delete must leave a whole image, so the server's file goes last.
var ImageDelete = saga.Table[api.ImageRemoval]{
	Kind: api.OpImageDelete, Start: startImageDelete,
	Steps: []saga.Step[api.ImageRemoval]{
		{Name: "evict", Where: node, Do: evictImage}, // copies are made again on demand
		{Name: "remove", Where: control, Do: removeImage, Commit: true},
	},
}

func startImageDelete(op steps.Op) (s api.ImageRemoval, err error) {
	err = json.Unmarshal(op.Input, &s)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func evictImage(r *saga.Run, s *api.ImageRemoval) error {
	for _, c := range s.Copies {
		if _, err := steps.EvictImage.Call(r, c.Agent, c.Copy); err != nil {
			return problem.Wrap(err, problem.Internal, "the copy in pool %s", c.Copy.OnNode().Where())
		}
	}
	return nil
}

func removeImage(r *saga.Run, s *api.ImageRemoval) error {
	_, err := steps.RemoveImage.Call(r, "", steps.ImageFile{Image: s.Image})
	return err
}

// nodesAtATime is how many nodes of a pool are asked at a time: a thousand one by one take a thousand times as long as
// one, and a thousand at once would answer at once.
const nodesAtATime = 32

func startPool(op steps.Op) (s api.PoolWork, err error) {
	err = json.Unmarshal(op.Input, &s)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

// poolPatience is how long it is tried to reach a pool that somebody has just named: what does not answer is more often a mistake than
// a server that is about to come.
const poolPatience = 25 * time.Second

// PoolAdd makes a directory a pool on each of its agents, by really using it.
var PoolAdd = saga.Table[api.PoolWork]{
	Kind: api.OpPoolAdd, Start: startPool,
	Steps: []saga.Step[api.PoolWork]{
		{Name: "prepare", Where: node, Do: preparePool, Undo: releasePool, Patience: poolPatience},
	},
}

// PoolDelete takes a pool away from its agents; it was checked that no volume is in it.
var PoolDelete = saga.Table[api.PoolWork]{
	Kind: api.OpPoolDelete, Start: startPool,
	Steps: []saga.Step[api.PoolWork]{
		{Name: "release", Where: node, Do: releasePool, Undo: preparePool},
	},
}

// PoolUpdate brings nodes into a pool, and takes others out of it; it was checked that nothing is on those. Or the pool is reached in
// another way from now on, when all its nodes have tried that: how, is in the record, and agents find another key behind it.
var PoolUpdate = saga.Table[api.PoolChange]{
	Kind: api.OpPoolUpdate, Start: startPoolChange,
	Steps: []saga.Step[api.PoolChange]{
		{Name: "prepare", Where: node, Do: prepareAdded, Undo: releaseAdded, Patience: poolPatience},
		{Name: "check", Where: node, Do: checkPool, Patience: poolPatience}, // changes nothing
		{Name: "release", Where: node, Do: releaseRemoved, Undo: prepareRemoved},
	},
}

func startPoolChange(op steps.Op) (s api.PoolChange, err error) {
	err = json.Unmarshal(op.Input, &s)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func checkPool(r *saga.Run, s *api.PoolChange) error {
	there := s.Pool
	there.Source = s.Source
	return onEach(r, there, s.Check, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		_, err := steps.CheckPool.Call(r, a.ID, api.PoolCheck{Pool: p, Secret: s.Secret})
		return problem.Wrap(err, problem.Internal, "agent %s cannot use the pool in this way", a.Name)
	})
}

// prepareAdded makes the directory of each new node the pool. A shared one is that already, which the new ones must see.
func prepareAdded(r *saga.Run, s *api.PoolChange) error {
	return onEach(r, s.Pool, s.Add, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		p.Join = p.Shared
		_, err := steps.PreparePool.Call(r, a.ID, p)
		switch {
		case err == nil:
			return nil
		case p.Join && problem.Is(err, problem.Conflict):
			return notTheSame(err, a.Name, p.Where(), "the other nodes of the pool", "mount the same file system there")
		default:
			return ofPool(err, p, a)
		}
	})
}

// onEach asks agents about a pool, many at a time.
func onEach(r *saga.Run, pool steps.PoolOnNode, agents []api.AgentRef, ask func(*saga.Run, api.AgentRef, steps.PoolOnNode) error) error {
	return r.Each(len(agents), nodesAtATime, func(r *saga.Run, i int) error {
		p := pool
		p.Agent = agents[i].ID
		return ask(r, agents[i], p)
	})
}

// releaseAdded leaves a directory alone that has volumes in it: none can have come since, so they were there when the node had
// the pool before.
func releaseAdded(r *saga.Run, s *api.PoolChange) error {
	if s.Pool.Shared {
		return nil // who joins makes nothing
	}
	return onEach(r, s.Pool, s.Add, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		if _, err := steps.ReleasePool.Call(r, a.ID, p); err != nil && !problem.Is(err, problem.InUse) {
			return ofPool(err, p, a)
		}
		return nil
	})
}

func releaseRemoved(r *saga.Run, s *api.PoolChange) error {
	return onEach(r, s.Pool, s.Remove, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		if _, err := steps.ReleasePool.Call(r, a.ID, p); err != nil {
			return ofPool(err, p, a)
		}
		return nil
	})
}

func prepareRemoved(r *saga.Run, s *api.PoolChange) error {
	return onEach(r, s.Pool, s.Remove, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		if _, err := steps.PreparePool.Call(r, a.ID, p); err != nil {
			return ofPool(err, p, a)
		}
		return nil
	})
}

// ofPool says of which node an error is.
func ofPool(err error, p api.PoolOnNode, a api.AgentRef) error {
	what := "pool"
	if len(p.Source.Hosts) == 0 {
		what = "pool directory"
	}
	return problem.Wrap(err, problem.Internal, "%s %s on agent %s", what, p.Where(), a.Name)
}

// notTheSame says that a node does not see the files of a shared pool.
func notTheSame(err error, agent, where, others, fix string) error {
	return problem.New(problem.Conflict, "agent %s does not see the same files at %s as %s", agent, where, others).
		Because("%s", problem.From(err).What).Try("%s", fix)
}

// preparePool asks all agents. A shared directory is made a pool by the first, alone; the others must see that it is one.
func preparePool(r *saga.Run, s *api.PoolWork) error {
	ask := func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		_, err := steps.PreparePool.Call(r, a.ID, p)
		switch {
		case err == nil:
			return nil
		case p.Join && problem.Is(err, problem.Conflict):
			return notTheSame(err, a.Name, p.Where(), "agent "+s.Agents[0].Name, "mount the same file system there, or leave --shared out")
		default:
			return ofPool(err, p, a)
		}
	}
	makers := len(s.Agents)
	if s.Pool.Shared {
		makers = min(1, makers)
	}
	if err := onEach(r, s.Pool, s.Agents[:makers], ask); err != nil {
		return err
	}
	joined := s.Pool
	joined.Join = true
	return onEach(r, joined, s.Agents[makers:], ask)
}

// releasePool asks all agents; of a shared pool only the first, which stands for all of them.
func releasePool(r *saga.Run, s *api.PoolWork) error {
	agents := s.Agents
	if s.Pool.Shared {
		agents = agents[:min(1, len(agents))]
	}
	return onEach(r, s.Pool, agents, func(r *saga.Run, a api.AgentRef, p steps.PoolOnNode) error {
		if _, err := steps.ReleasePool.Call(r, a.ID, p); err != nil {
			return ofPool(err, p, a)
		}
		return nil
	})
}
