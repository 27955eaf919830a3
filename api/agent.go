package api

import (
	"net/netip"
	"strings"
	"time"

	"github.com/nextstack/nextstack/api/problem"
)

// Agent is a node: one machine with an agent on it.
type Agent struct {
	Meta
	Spec   AgentSpec   `json:"spec"`
	Status AgentStatus `json:"status"`
}

// ResourceKind implements Resource.
func (*Agent) ResourceKind() Kind { return KindAgent }

// AgentSpec is what an operator decides about a node.
type AgentSpec struct {
	ReservedMemory int64   `json:"reservedMemory" doc:"Bytes kept for the host itself"`
	CPURatio       float64 `json:"cpuRatio" doc:"How many vCPUs may be promised per core"`
	MemoryRatio    float64 `json:"memoryRatio" doc:"How many bytes may be promised per byte of memory"`
	Cordoned       bool    `json:"cordoned,omitempty" doc:"Takes no new VMs"`
	CordonReason   string  `json:"cordonReason,omitempty"`
	Fence          *Fence  `json:"fence,omitempty" doc:"Device that can power it off; none: only the end of its lease, or an operator, proves that it is off"`
}

// FenceIPMI is the driver of fence devices that speak IPMI 2.0 over LAN.
const FenceIPMI = "ipmi"

// Fence is a device that can power a node off.
type Fence struct {
	Driver   string `json:"driver" doc:"ipmi; in a change: empty removes the device"`
	Address  string `json:"address,omitempty" doc:"host or host:port; the port is 623 if it is not given"`
	User     string `json:"user,omitempty"`
	Password string `json:"password,omitempty" doc:"Only ever sent, never shown; kept encrypted"`
}

// AgentStatus is what a node reports, and what follows from it.
type AgentStatus struct {
	Phase     Phase     `json:"phase" doc:"ready, maintenance, unavailable (alive, but cannot run VMs now), suspect or down"`
	Reason    string    `json:"reason,omitempty"`
	Since     time.Time `json:"since,omitzero" doc:"Since when it is in this phase"`
	Observed  time.Time `json:"observed,omitzero" doc:"When it last reported"`
	Inventory Inventory `json:"inventory"`
	Claimed   Amount    `json:"claimed" doc:"Promised to VMs"`
	Free      Amount    `json:"free" doc:"Can still be promised"`
	Lease     Lease     `json:"lease,omitzero"`
	Proof     *Proof    `json:"proof,omitempty" doc:"Of a node that is down: how that is known"`
	// ConfirmedOff is there while a recovery holds the node only: it ends with the recovery, and with any report of the node.
	ConfirmedOff string `json:"confirmedOff,omitempty" doc:"Of a node that is being recovered: who has said, having looked, that it is off"`
}

// Alive reports whether the agent reports, whether or not it takes new VMs.
func (s *AgentStatus) Alive() bool {
	return s.Phase == PhaseReady || s.Phase == PhaseMaintenance || s.Phase == PhaseUnavailable
}

// Lease is how long a node may run HA VMs without hearing from the server.
type Lease struct {
	Until   time.Time `json:"until,omitzero" doc:"By the server's clock; when it is over, and a margin, a guarded node runs no HA VM"`
	Guarded bool      `json:"guarded,omitempty" doc:"A guardian on the node keeps the promise even if the agent dies"`
}

// How it is known that a node is off.
const (
	ProofFence    = "fence"    // its fence device has powered it off, and says so
	ProofLease    = "lease"    // its guarded lease is over: what is HA was stopped by the node itself
	ProofOperator = "operator" // somebody who looked says so
)

// Proof is how it is known that a node runs nothing that may be started elsewhere.
type Proof struct {
	Kind   string    `json:"kind" enum:"fence,lease,operator"`
	Detail string    `json:"detail"`
	At     time.Time `json:"at"`
}

// AgentUpdate changes what is decided about a node. Nil fields stay as they are.
type AgentUpdate struct {
	Labels         *map[string]string `json:"labels,omitempty"`
	ReservedMemory *int64             `json:"reservedMemory,omitempty" doc:"Bytes"`
	CPURatio       *float64           `json:"cpuRatio,omitempty" doc:"0.1 to 64"`
	MemoryRatio    *float64           `json:"memoryRatio,omitempty" doc:"0.1 to 4"`
	Cordoned       *bool              `json:"cordoned,omitempty"`
	CordonReason   *string            `json:"cordonReason,omitempty"`
	Fence          *Fence             `json:"fence,omitempty" doc:"An empty driver removes the device"`
}

// Validate checks the shape of the request.
func (r *AgentUpdate) Validate() error {
	var v problem.Validation
	if r.Labels != nil {
		CheckLabels(&v, "labels", *r.Labels)
	}
	if r.ReservedMemory != nil {
		v.Check(*r.ReservedMemory >= 0 && *r.ReservedMemory <= MaxMemory, "reservedMemory", *r.ReservedMemory, "must be 0 to 4 TiB, in bytes")
	}
	if r.CPURatio != nil {
		v.Check(*r.CPURatio >= 0.1 && *r.CPURatio <= 64, "cpuRatio", *r.CPURatio, "must be 0.1 to 64")
	}
	if r.MemoryRatio != nil {
		v.Check(*r.MemoryRatio >= 0.1 && *r.MemoryRatio <= 4, "memoryRatio", *r.MemoryRatio, "must be 0.1 to 4")
	}
	if r.CordonReason != nil {
		v.Check(len(*r.CordonReason) <= 255 && printable(*r.CordonReason), "cordonReason", *r.CordonReason, "must be at most 255 printable characters")
	}
	if f := r.Fence; f != nil && f.Driver != "" {
		v.Check(f.Driver == FenceIPMI, "fence.driver", f.Driver, "must be %s, or empty to remove the device", FenceIPMI)
		v.Check(fenceAddress(f.Address), "fence.address", f.Address, "must be a host or host:port")
		v.Check(f.User != "" && len(f.User) <= 16 && printable(f.User), "fence.user", f.User, "must be 1 to 16 characters")
		v.Check(len(f.Password) <= 20, "fence.password", "", "must be at most 20 characters, as IPMI 2.0 has it")
	}
	return v.Err("host update")
}

func fenceAddress(s string) bool {
	if s == "" || strings.ContainsAny(s, " /@\n") {
		return false
	}
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	_, port, found := strings.Cut(s, ":")
	return !found || port != "" && strings.Trim(port, "0123456789") == "" && len(port) <= 5
}

// HostDrain asks to move every VM away from a node, which takes no new ones from then on.
type HostDrain struct {
	Parallel     int    `json:"parallel,omitempty" doc:"Moves at a time; default 2, at most 16"`
	CopyStorage  bool   `json:"copyStorage,omitempty" doc:"Also move VMs whose disks must be copied"`
	Cold         bool   `json:"cold,omitempty" doc:"Also move VMs that cannot be moved while they run, by stopping and starting them"`
	AutoConverge bool   `json:"autoConverge,omitempty"`
	PostCopy     bool   `json:"postCopy,omitempty"`
	Reason       string `json:"reason,omitempty" doc:"Why, for those who look at the node"`
}

// Validate checks the shape of the request.
func (r *HostDrain) Validate() error {
	var v problem.Validation
	v.Check(r.Parallel >= 0 && r.Parallel <= 16, "parallel", r.Parallel, "must be 0 (the default) to 16")
	v.Check(len(r.Reason) <= 255 && printable(r.Reason), "reason", r.Reason, "must be at most 255 printable characters")
	return v.Err("drain request")
}

// HostBalance asks to even out how the nodes are used.
type HostBalance struct {
	Parallel int `json:"parallel,omitempty" doc:"Moves at a time; default 2, at most 16"`
	Moves    int `json:"moves,omitempty" doc:"Moves at most; default 16, at most 256"`
}

// Validate checks the shape of the request.
func (r *HostBalance) Validate() error {
	var v problem.Validation
	v.Check(r.Parallel >= 0 && r.Parallel <= 16, "parallel", r.Parallel, "must be 0 (the default) to 16")
	v.Check(r.Moves >= 0 && r.Moves <= 256, "moves", r.Moves, "must be 0 (the default) to 256")
	return v.Err("balance request")
}

// HostRecover asks to start the HA VMs of a dead node elsewhere. The server does so by itself for a node that is silent; to
// ask is to confirm, by somebody who looked, that the node is off.
type HostRecover struct {
	ConfirmOff bool `json:"confirmOff" doc:"I have made sure that this node is powered off. If it is not, disks will be destroyed"`
}

// Validate checks the shape of the request.
func (r *HostRecover) Validate() error {
	var v problem.Validation
	v.Check(r.ConfirmOff, "confirmOff", r.ConfirmOff, "must be true: only who knows that the node is off may ask for this")
	return v.Err("recover request")
}

// Decision is where a VM goes and why. Long lists are cut; More says how many are left out.
type Decision struct {
	Node string `json:"node,omitempty" doc:"Agent ID; empty: no node can take it"`
	Name string `json:"name,omitempty"`
	// Strategy is missing in decisions of before there was a choice, and where nothing was decided.
	Strategy string      `json:"strategy,omitempty" doc:"spread or pack: whether the emptier or the fuller node counts as the better one"`
	Ranked   []Candidate `json:"ranked,omitempty" doc:"Nodes that can take it, best first"`
	Refused  []Refusal   `json:"refused,omitempty" doc:"Nodes that cannot, and why"`
	More     int         `json:"more,omitempty"`
}

// Candidate is a node that can take a VM.
type Candidate struct {
	Node  string             `json:"node"`
	Name  string             `json:"name"`
	Score float64            `json:"score" doc:"The higher the better"`
	Terms map[string]float64 `json:"terms,omitempty" doc:"What the score is made of"`
}

// Refusal is a node that cannot take a VM.
type Refusal struct {
	Node   string `json:"node"`
	Name   string `json:"name"`
	Reason string `json:"reason"`
}

// Kinds of moves.
const (
	MoveLive    = "live"    // the guest runs on
	MoveCold    = "cold"    // it is stopped and started, or was stopped anyway
	MoveRestart = "restart" // its node is dead, and it is started anew
)

// Move is one VM that goes from one node to another, or cannot.
type Move struct {
	VM        Ref              `json:"vm"`
	From      string           `json:"from" doc:"Agent name"`
	To        string           `json:"to,omitempty" doc:"Agent name; empty: it stays"`
	Kind      string           `json:"kind,omitempty" enum:"live,cold,restart"`
	Copy      bool             `json:"copy,omitempty" doc:"Its disks are copied, but for those in shared pools"`
	Reason    string           `json:"reason,omitempty" doc:"Why it goes, or why it cannot"`
	Operation string           `json:"operation,omitempty"`
	State     OperationState   `json:"state,omitempty"`
	Error     *problem.Problem `json:"error,omitempty"`
}

// MovePlan is what a drain, a balance or a recovery intends, and in the end what became of it.
type MovePlan struct {
	Moves []Move `json:"moves"`
	Stays []Move `json:"stays,omitempty" doc:"VMs that cannot be moved, and why"`
	Proof *Proof `json:"proof,omitempty" doc:"Of a recovery: how it is known that the node is off"`
}

// DryRun is what a request would do.
type DryRun struct {
	Kind     string           `json:"kind" doc:"Operation kind"`
	Steps    []StepRecord     `json:"steps"`
	Decision *Decision        `json:"decision,omitempty"`
	Plan     *MovePlan        `json:"plan,omitempty"`
	Volume   *VolumeMoving    `json:"volume,omitempty" doc:"Of a volume that would go to another pool"`
	Error    *problem.Problem `json:"error,omitempty" doc:"Why it would fail"`
}

// Amount is a quantity of compute.
type Amount struct {
	VCPUs  int   `json:"vcpus"`
	Memory int64 `json:"memory" doc:"Bytes"`
}

// Inventory is what a node has. Nothing in it is assumed: all comes from libvirt and the kernel of that node.
type Inventory struct {
	Hostname    string            `json:"hostname"`
	Arch        string            `json:"arch" doc:"As libvirt says it: x86_64, aarch64, riscv64..."`
	Accel       string            `json:"accel" doc:"kvm or tcg"`
	Machine     string            `json:"machine" doc:"Machine type for guests"`
	Emulator    string            `json:"emulator"`
	CPUModel    string            `json:"cpuModel"`
	Cores       int               `json:"cores"`
	Memory      int64             `json:"memory" doc:"Bytes"`
	Versions    map[string]string `json:"versions,omitempty" doc:"libvirt, qemu, ovs, kernel, agent"`
	Pools       []PoolUsage       `json:"pools,omitempty"`
	OVNChassis  string            `json:"ovnChassis,omitempty" doc:"system-id of the node in OVN"`
	UserspaceDP bool              `json:"userspaceDatapath,omitempty" doc:"OVS runs without its kernel module, so guest NIC offloads must be off"`
	HostUUID    string            `json:"hostUUID,omitempty" doc:"Of the machine, as libvirt knows it; no two agents may have the same"`
	CPUModels   []string          `json:"cpuModels,omitempty" doc:"Named CPU models that it can give to guests"`
	CPUFlags    []string          `json:"cpuFlags,omitempty"`
	NUMA        []NUMACell        `json:"numa,omitempty"`
	HugePages   []HugePages       `json:"hugePages,omitempty"`
	NICs        []HostNIC         `json:"nics,omitempty"`
	Devices     []HostDevice      `json:"devices,omitempty" doc:"PCI display controllers and accelerators"`
	Peer        Peer              `json:"peer,omitzero" doc:"How other nodes reach it"`
	UsedMemory  int64             `json:"usedMemory,omitempty" doc:"Bytes really in use on the node, by guests and host"`
}

// Peer is how other nodes reach a node. What is empty cannot be done.
type Peer struct {
	Libvirt  string `json:"libvirt,omitempty" doc:"libvirt URI at which the other nodes' libvirt reaches this one's, for live migration"`
	Address  string `json:"address,omitempty" doc:"Address that guests' memory and disks are sent to"`
	Transfer string `json:"transfer,omitempty" doc:"host:port at which other agents fetch disks"`
}

// NUMACell is one memory node of a machine.
type NUMACell struct {
	ID     int   `json:"id"`
	Memory int64 `json:"memory" doc:"Bytes"`
	CPUs   []int `json:"cpus"`
}

// HugePages is what a node has of one size of huge pages.
type HugePages struct {
	Size  int64 `json:"size" doc:"Bytes of one"`
	Total int64 `json:"total"`
	Free  int64 `json:"free"`
}

// HostNIC is a network interface of a node.
type HostNIC struct {
	Name  string `json:"name"`
	MAC   string `json:"mac,omitempty"`
	MTU   int    `json:"mtu,omitempty"`
	Speed int    `json:"speed,omitempty" doc:"Mbit/s; 0: not known"`
	Up    bool   `json:"up"`
}

// HostDevice is a PCI device of a node.
type HostDevice struct {
	Address string `json:"address" doc:"Such as 0000:01:00.0"`
	Class   string `json:"class" doc:"PCI class, such as 0x030000"`
	Vendor  string `json:"vendor"`
	Product string `json:"product"`
	Driver  string `json:"driver,omitempty"`
}

// PoolUsage is the room of one pool as one node sees it.
type PoolUsage struct {
	Pool     string `json:"pool" doc:"Pool ID"`
	Capacity int64  `json:"capacity" doc:"Bytes"`
	Free     int64  `json:"free" doc:"Bytes"`
	Error    string `json:"error,omitempty"`
	// Images are what the weigher of image caches goes by: a VM of one of them starts there without a download.
	Images []string `json:"images,omitempty" doc:"SHA-256 of the images that the pool has a copy of, sorted; the first 256"`
}

// MaxPoolImages is how many images a PoolUsage names at most.
const MaxPoolImages = 256

// AgentJoin is what an agent sends once to become a member.
type AgentJoin struct {
	Name  string `json:"name"`
	Token string `json:"token" doc:"The join token"`
}

// Validate checks the shape of the request.
func (r *AgentJoin) Validate() error {
	var v problem.Validation
	CheckName(&v, "name", r.Name)
	v.Check(r.Token != "", "token", "", "is missing; the server writes it to its --join-token-file")
	return v.Err("join request")
}

// AgentJoined is the answer: who the agent is and where it finds its work.
type AgentJoined struct {
	ID              string `json:"id"`
	Credential      string `json:"credential" doc:"Bearer token of this agent alone"`
	TemporalAddress string `json:"temporalAddress"`
	Namespace       string `json:"namespace"`
}

// AgentReport is what an agent tells every few seconds.
type AgentReport struct {
	Inventory Inventory       `json:"inventory"`
	VMs       []VMObservation `json:"vms"`
	Sent      time.Time       `json:"sent" doc:"When the node was looked at"`
	Error     string          `json:"error,omitempty" doc:"Why the node cannot run VMs now; the rest is then what was known at the time sent"`
	// Guarded: a guardian that outlives the agent has promised to stop the HA VMs of this node when the lease ends. Without
	// one a lease proves nothing.
	Guarded bool     `json:"guarded,omitempty"`
	Stopped []string `json:"stopped,omitempty" doc:"HA VMs that were stopped because a lease had ended, until the server has taken note"`
}

// VMObservation is one domain as libvirt has it now.
type VMObservation struct {
	ID     string `json:"id" doc:"VM ID, which is the domain's UUID"`
	Phase  Phase  `json:"phase" doc:"running, stopped or paused"`
	Reason string `json:"reason,omitempty" doc:"Why it is so, where that is worth telling"`
}

// AgentPool tells an agent of a pool that it should report on.
type AgentPool struct {
	ID     string `json:"id"`
	Type   string `json:"type"`
	Path   string `json:"path"`
	Shared bool   `json:"shared,omitempty"`
	// Source is where the storage is that is not the node's own.
	Source PoolSource `json:"source,omitzero"`
}

// AgentOrders is the answer to a report.
type AgentOrders struct {
	Pools []AgentPool `json:"pools"`
	// Lease is how many seconds, from the moment the report was sent, the node may go on running HA VMs without another
	// answer. 0: the server gives none, and what the node has holds no longer than it did.
	Lease float64 `json:"lease,omitempty"`
	// ReportEvery is how many seconds the agent should let pass between reports; 0: as it is configured.
	ReportEvery float64  `json:"reportEvery,omitempty"`
	Stop        []string `json:"stop,omitempty" doc:"VMs that run elsewhere now: cut their power and undefine them before anything else, and leave their disks alone"`
	Noted       []string `json:"noted,omitempty" doc:"Of the stopped VMs of the report: those that need not be told of again"`
}
