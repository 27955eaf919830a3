package steps

import (
	"time"

	"github.com/nextstack/nextstack/api"
)

type (
	// VPCWiring is a VPC, as requests are accepted with it.
	VPCWiring = api.VPCWiring
	// SubnetWiring is a subnet, as requests are accepted with it.
	SubnetWiring = api.SubnetWiring
	// SecurityGroupWiring is a security group, as requests are accepted with it.
	SecurityGroupWiring = api.SecurityGroupWiring
	// PortWiring is a port, as requests are accepted with it.
	PortWiring = api.PortWiring
	// ImageImport is an image's source, as requests are accepted with it.
	ImageImport = api.ImageImport
	// ImageImported is what became of it, as requests are accepted with it.
	ImageImported = api.ImageImported
	// ImageExport is an image in another format, as requests are accepted with it.
	ImageExport = api.ImageExportWork
	// ImageExported is what became of it.
	ImageExported = api.ImageExported
)

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

// ImageFile names an image's file in the server's image store, which is called by the image's ID: so it can be removed even
// when nobody knows how far its import came.
type ImageFile struct {
	Image string `json:"image"`
}

// FenceKey says which resource the steps on it are ordered by.
func (f ImageFile) FenceKey() string { return f.Image }

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
	// RepairNetwork removes rows that an audit found to be nobody's, and corrects those that it found to be altered.
	RepairNetwork = Step[[]api.Finding, []api.Finding]{Name: "network.repair", Where: Control, Timeout: time.Minute}

	// ImportImage checks the source and stores it. Undo: RemoveImage.
	ImportImage = Step[ImageImport, ImageImported]{Name: "image.import", Where: Control, Timeout: 2 * time.Hour, Interruptible: true}
	// ExportImage makes the image in another format. What an earlier export has made is used again. Undo: RemoveExport.
	ExportImage = Step[ImageExport, ImageExported]{Name: "image.export", Where: Control, Timeout: 2 * time.Hour, Interruptible: true}
	// ExportUpload makes a file of an upload of a volume, to be downloaded, after it was checked like that of a stranger. Undo:
	// RemoveImage, and RemoveUpload.
	ExportUpload = Step[api.UploadExport, ImageExported]{Name: "image.export_upload", Where: Control, Timeout: 4 * time.Hour, Interruptible: true}
	// RemoveUpload removes what a node has sent under an image's ID; it is content if there is nothing.
	RemoveUpload = Step[ImageFile, Nothing]{Name: "image.remove_upload", Where: Control, Timeout: time.Minute}
	// RemoveExport removes an image in another format; it is content if there is none.
	RemoveExport = Step[ImageExport, Nothing]{Name: "image.remove_export", Where: Control, Timeout: time.Minute}
	// RemoveImage removes the stored file, what an import left half-made, and all exports.
	RemoveImage = Step[ImageFile, Nothing]{Name: "image.remove", Where: Control, Timeout: time.Minute}
)
