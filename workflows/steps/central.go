package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

// VPCWiring is a VPC as the network needs it.
type VPCWiring struct {
	VPC     string `json:"vpc"`
	Name    string `json:"name"`
	Project string `json:"project"`
	CIDR    string `json:"cidr"`
}

// SubnetWiring is a subnet as the network needs it.
type SubnetWiring struct {
	Subnet  string   `json:"subnet"`
	Name    string   `json:"name"`
	Project string   `json:"project"`
	VPC     string   `json:"vpc"`
	CIDR    string   `json:"cidr"`
	Gateway string   `json:"gateway"`
	DNS     []string `json:"dns,omitempty"`
}

// SecurityGroupWiring is a security group as the network needs it.
type SecurityGroupWiring struct {
	SecurityGroup string     `json:"securityGroup"`
	Name          string     `json:"name"`
	Project       string     `json:"project"`
	Rules         []api.Rule `json:"rules"`
}

// PortWiring is a port as the network needs it.
type PortWiring struct {
	Port           string   `json:"port"`
	Project        string   `json:"project"`
	Subnet         string   `json:"subnet"`
	MAC            string   `json:"mac"`
	Address        string   `json:"address"`
	SecurityGroups []string `json:"securityGroups,omitempty"`
	Hostname       string   `json:"hostname,omitempty"`
	VM             string   `json:"vm,omitempty"`
}

// PortRefs names ports to be wired or removed. The wiring is read from the store by the step itself.
type PortRefs struct {
	Project string   `json:"project"`
	Ports   []string `json:"ports"`
}

// ResourceRef names one resource whose record tells a central step all it needs.
type ResourceRef struct {
	Project string `json:"project"`
	ID      string `json:"id"`
}

// ImageImport is the source of an image.
type ImageImport struct {
	Image  string `json:"image"`
	Format string `json:"format"`
	Upload string `json:"upload,omitempty"`
	Path   string `json:"path,omitempty"`
	SHA256 string `json:"sha256,omitempty"`
}

// ImageImported is what an import made.
type ImageImported struct {
	SHA256      string `json:"sha256"`
	Size        int64  `json:"size"`        // bytes of the stored file
	VirtualSize int64  `json:"virtualSize"` // bytes a guest sees
}

// ImageFile names an image's file in the server's image store, which is called by the image's ID: so it can be removed even
// when nobody knows how far its import came.
type ImageFile struct {
	Image string `json:"image"`
}

// Steps on the network (northbound database) and on the server's image store. Wire steps make it so, whatever was there
// before; unwire steps are content if nothing is there.
var (
	WireVPC             = Step[VPCWiring, Nothing]{Name: "network.wire_vpc", Where: Local, Timeout: 15 * time.Second}
	UnwireVPC           = Step[ResourceRef, Nothing]{Name: "network.unwire_vpc", Where: Local, Timeout: 15 * time.Second}
	WireSubnet          = Step[SubnetWiring, Nothing]{Name: "network.wire_subnet", Where: Local, Timeout: 15 * time.Second}
	UnwireSubnet        = Step[ResourceRef, Nothing]{Name: "network.unwire_subnet", Where: Local, Timeout: 15 * time.Second}
	WireSecurityGroup   = Step[SecurityGroupWiring, Nothing]{Name: "network.wire_sg", Where: Local, Timeout: 15 * time.Second}
	UnwireSecurityGroup = Step[ResourceRef, Nothing]{Name: "network.unwire_sg", Where: Local, Timeout: 15 * time.Second}
	WirePorts           = Step[[]PortWiring, Nothing]{Name: "network.wire_ports", Where: Local, Timeout: 15 * time.Second}
	UnwirePorts         = Step[PortRefs, Nothing]{Name: "network.unwire_ports", Where: Local, Timeout: 15 * time.Second}
	// RepairNetwork removes rows that an audit found to be nobody's.
	RepairNetwork = Step[[]api.Finding, []api.Finding]{Name: "network.repair", Where: Control, Timeout: time.Minute}

	// ImportImage checks the source and stores it. Undo: RemoveImage.
	ImportImage = Step[ImageImport, ImageImported]{Name: "image.import", Where: Control, Timeout: 2 * time.Hour, Interruptible: true}
	// RemoveImage removes the stored file, and what an import left half-made.
	RemoveImage = Step[ImageFile, Nothing]{Name: "image.remove", Where: Control, Timeout: time.Minute}
)
