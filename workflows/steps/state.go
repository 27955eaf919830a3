package steps

import (
	"encoding/json"
	"slices"
	"time"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
)

// Op is what a workflow is started with.
type Op struct {
	ID      string          `json:"id"`
	Kind    string          `json:"kind"`
	Epoch   int64           `json:"epoch"` // store revision at which it was accepted
	Target  api.Ref         `json:"target"`
	Input   json.RawMessage `json:"input,omitempty"`
	Before  json.RawMessage `json:"before,omitempty"`  // what an update or delete goes back to
	Recover *Recovery       `json:"recover,omitempty"` // set when the first workflow of this operation was lost
}

// OpOf returns what the workflow of an accepted operation is started with; from is nil unless an earlier workflow of it was
// lost.
func OpOf(op *api.Operation, epoch int64, from *Recovery) Op {
	in := Op{ID: op.ID, Kind: op.Kind, Epoch: epoch, Target: op.Target, Recover: from}
	if op.Plan != nil {
		in.Input, in.Before = op.Plan.Input, op.Plan.Before
	}
	return in
}

// Recovery is how far a lost workflow had come, as its journal in the store tells.
type Recovery struct {
	Started    int              `json:"started"`       // how many steps may have run
	Seq        int              `json:"seq,omitempty"` // no attempt that was ever made has a higher one
	Committed  bool             `json:"committed"`
	Checkpoint json.RawMessage  `json:"checkpoint"`
	Error      *problem.Problem `json:"error"`
}

// Journal is what the workflow writes into its operation record as it goes.
type Journal struct {
	Operation  string             `json:"operation"`
	Number     int                `json:"number"` // grows with every write, so that a late one is known
	State      api.OperationState `json:"state"`
	Steps      []api.StepRecord   `json:"steps"` // times are filled in by whoever writes the record: workflow time stands still inside a task
	Error      *problem.Problem   `json:"error,omitempty"`
	Cause      *problem.Problem   `json:"cause,omitempty"` // why it goes back; Error may say what it is stuck at
	Checkpoint json.RawMessage    `json:"checkpoint,omitempty"`
}

// Outcome ends an operation.
type Outcome struct {
	Journal
	Result json.RawMessage `json:"result,omitempty"`
}

// VMRef names a VM.
type VMRef struct {
	Project string `json:"project"`
	VM      string `json:"vm"`
}

// VMOrder is a VM that is made, and what it gets of what exists.
type VMOrder struct {
	VMRef
	api.VMMake
}

// VMPlan is all that a node needs to know of a VM. No secret is in it: the agent fetches the seed itself.
type VMPlan struct {
	VM        string     `json:"vm"`
	Name      string     `json:"name"`
	Project   string     `json:"project"`
	Agent     string     `json:"agent"`
	AgentName string     `json:"agentName"`
	VCPUs     int        `json:"vcpus"`
	Memory    int64      `json:"memory"` // bytes
	Hostname  string     `json:"hostname"`
	Disk      DiskPlan   `json:"disk"`
	Data      []DataDisk `json:"data,omitempty"` // volumes that it has besides its root disk
	NICs      []NICPlan  `json:"nics"`
	CPUModel  string     `json:"cpuModel,omitempty"` // named model that the guest must have; empty: the node's choice
	HA        bool       `json:"ha,omitempty"`       // to be stopped when the node's lease ends
}

// Placement is a VM that has its place: what its node needs to know, and what the network needs to know.
type Placement struct {
	Plan  VMPlan       `json:"plan"`
	Phase api.Phase    `json:"phase"` // before the operation: running, stopped or paused; creating while it is made
	Ports []PortWiring `json:"ports"`
	// Volumes are those that are made with the VM, besides its root disk.
	Volumes []VolumePlan `json:"volumes,omitempty"`
	// ImageAt is another node that has a copy of the image which its node lacks; nil: nobody knows of one, or none is needed.
	ImageAt *ImageAt `json:"imageAt,omitempty"`
	// Decision is why it is there; nil if it was not decided now.
	Decision *api.Decision `json:"decision,omitempty"`
}

// DiskPlan is a root disk to be made from an image.
type DiskPlan struct {
	Volume      string         `json:"volume"`
	Pool        string         `json:"pool"`
	PoolName    string         `json:"poolName,omitempty"` // for people
	PoolPath    string         `json:"poolPath"`
	Size        int64          `json:"size"` // bytes
	Image       string         `json:"image"`
	ImageSHA256 string         `json:"imageSHA256"`
	ImageSize   int64          `json:"imageSize"`        // bytes of the file to fetch
	Shared      bool           `json:"shared,omitempty"` // the pool is the same on all its nodes
	Type        string         `json:"type,omitempty"`   // of the pool; empty: api.PoolDir
	Source      api.PoolSource `json:"source,omitzero"`  // of the pool
	Layer       string         `json:"layer,omitempty"`  // as VolumePlan
	QoS         api.VolumeQoS  `json:"qos,omitzero"`
	Offer       *DiskOffer     `json:"offer,omitempty"` // of another node that has a copy of the image
}

// OnNode is the pool that the disk is in.
func (d DiskPlan) OnNode() PoolOnNode {
	return PoolOnNode{Pool: d.Pool, Name: d.PoolName, Type: d.Type, Path: d.PoolPath, Shared: d.Shared, Source: d.Source}
}

// NICPlan is a network interface to be given to a domain.
type NICPlan struct {
	Port string `json:"port"`
	MAC  string `json:"mac"`
}

// Steps on the store.
var (
	// SaveJournal writes how far the operation has come. It never fails for good.
	SaveJournal = Step[Journal, Nothing]{Name: "state.journal", Where: Local, Timeout: 10 * time.Second}
	// Settle ends the operation: outcome, records and locks in one transaction.
	Settle = Step[Outcome, Nothing]{Name: "state.settle", Where: Local, Timeout: 10 * time.Second}
	// PlaceVM picks a node and claims its capacity. Doing it twice gives the same node.
	PlaceVM = Step[VMOrder, Placement]{Name: "state.place_vm", Where: Local, Timeout: 10 * time.Second}
	// UnplaceVM gives the capacity back.
	UnplaceVM = Step[VMRef, Nothing]{Name: "state.unplace_vm", Where: Local, Timeout: 10 * time.Second}
	// LoadVM tells what a placed VM looks like.
	LoadVM = Step[VMRef, Placement]{Name: "state.load_vm", Where: Local, Timeout: 10 * time.Second}
	// Noop does nothing.
	Noop = Step[Nothing, Nothing]{Name: "state.noop", Where: Local, Timeout: 10 * time.Second}
	// LoadAgents tells which agents there are, and their pools.
	LoadAgents = Step[Nothing, AgentList]{Name: "state.load_agents", Where: Local, Timeout: 10 * time.Second}
	// CompareWorlds is the audit: the store against what the nodes and the network report.
	CompareWorlds = Step[Worlds, api.AuditReport]{Name: "state.compare", Where: Control, Timeout: 2 * time.Minute}
	// RepairStore drops claims, locks and names that nobody owns.
	RepairStore = Step[[]api.Finding, []api.Finding]{Name: "state.repair", Where: Control, Timeout: time.Minute}
)

// AgentList is the agents an operation should ask.
type AgentList struct {
	Agents []AgentPools `json:"agents"`
}

// AgentPools is an agent and the pools that it has.
type AgentPools struct {
	AgentRef
	Pools []PoolOnNode `json:"pools"`
}

// Has reports whether the agent has all these pools, by ID.
func (a AgentPools) Has(pools []string) bool {
	return !slices.ContainsFunc(pools, func(id string) bool {
		return !slices.ContainsFunc(a.Pools, func(p PoolOnNode) bool { return p.Pool == id })
	})
}

// Worlds is everything outside the store, as far as it could be asked.
type Worlds struct {
	Nodes   []NodeWorld `json:"nodes"`
	Skipped []string    `json:"skipped,omitempty"`
}
