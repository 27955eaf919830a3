package workflows

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// volumeExportState is what the steps of an export of a volume share.
type volumeExportState struct {
	captureState
	Format string              `json:"format"`
	File   steps.ImageExported `json:"file"`
}

func (s *volumeExportState) on() string { return s.captureState.node() }

// ofCapture makes a step of an export of what is the same for images.
func ofCapture(do func(*saga.Run, *captureState) error) func(*saga.Run, *volumeExportState) error {
	return func(r *saga.Run, s *volumeExportState) error { return do(r, &s.captureState) }
}

// VolumeExport makes a file of a volume, to be downloaded from the server: as an image is made of it, but that there is none in the
// end. The file goes by itself after a while.
var VolumeExport = saga.Table[volumeExportState]{
	Kind: api.OpVolumeExport, Start: startVolumeExport,
	Steps: []saga.Step[volumeExportState]{
		{Name: "copy", Where: node, On: (*volumeExportState).on, Do: ofCapture(copyForImage), Undo: ofCapture(dropCopy)},
		{Name: "send", Where: node, On: (*volumeExportState).on, Do: ofCapture(sendCopy), Undo: ofCapture(dropSent)},
		{Name: "export", Where: control, Do: exportCopy, Undo: ofCapture(dropCaptured)},
		{Name: "clean", Where: node, On: (*volumeExportState).on, Do: ofCapture(dropCopy)}, // the undo of the copy does the same
	},
	Result: func(s *volumeExportState) (json.RawMessage, error) { return json.Marshal(s.File) },
}

func startVolumeExport(op steps.Op) (s volumeExportState, err error) {
	var work api.VolumeExportWork
	err = json.Unmarshal(op.Input, &work)
	s.In, s.Format = work.ImageCapture, work.Format
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func exportCopy(r *saga.Run, s *volumeExportState) (err error) {
	s.File, err = steps.ExportUpload.Call(r, "", api.UploadExport{ID: s.In.Image, Format: s.Format, SHA256: s.Sent.SHA256})
	return err
}
