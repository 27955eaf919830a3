package workflows

import (
	"encoding/json"

	"github.com/nextstack/nextstack/api"
	"github.com/nextstack/nextstack/api/problem"
	"github.com/nextstack/nextstack/workflows/saga"
	"github.com/nextstack/nextstack/workflows/steps"
)

// captureState is what the steps of making an image of a volume share.
type captureState struct {
	In   api.ImageCapture    `json:"in"`
	Sent steps.VolumeSent    `json:"sent"`
	Made steps.ImageImported `json:"made"`
}

func (s *captureState) node() string { return s.In.Agent.Name }

// copy is the volume that is made for the image: it is called by the image's ID, stands alone, and goes in the end.
func (s *captureState) copy() steps.VolumePlan {
	return steps.VolumePlan{
		Volume: s.In.Image, Name: s.In.Name, Pool: s.In.Pool, Agent: s.In.Agent.ID, Size: s.In.Size,
		From: &steps.VolumeFrom{Volume: s.In.From.Volume, Layer: s.In.From.Layer, Snapshot: s.In.From.Snapshot},
	}
}

// ImageCapture makes an image of a volume: a copy that stands alone is made in its pool, sent to the server, and checked there as
// if a stranger had sent it, because its guest may have written anything.
var ImageCapture = saga.Table[captureState]{
	Kind: api.OpImageCapture, Start: startCapture,
	Steps: []saga.Step[captureState]{
		{Name: "copy", Where: node, On: (*captureState).node, Do: copyForImage, Undo: dropCopy},
		{Name: "send", Where: node, On: (*captureState).node, Do: sendCopy, Undo: dropSent},
		{Name: "import", Where: control, Do: importCopy, Undo: dropCaptured},
		{Name: "clean", Where: node, On: (*captureState).node, Do: dropCopy}, // the undo of the copy does the same
	},
	Result: func(s *captureState) (json.RawMessage, error) { return json.Marshal(s.Made) },
}

func startCapture(op steps.Op) (s captureState, err error) {
	err = json.Unmarshal(op.Input, &s.In)
	return s, problem.Wrap(err, problem.Internal, "the input of %s cannot be read", op.Kind)
}

func copyForImage(r *saga.Run, s *captureState) error {
	_, err := steps.MakeVolume.Call(r, s.In.Agent.ID, s.copy())
	return err
}

func dropCopy(r *saga.Run, s *captureState) error {
	_, err := steps.RemoveVolume.Call(r, s.In.Agent.ID, s.copy())
	return err
}

func sendCopy(r *saga.Run, s *captureState) (err error) {
	s.Sent, err = steps.SendVolume.Call(r, s.In.Agent.ID, steps.VolumeSend{Volume: s.copy(), Image: s.In.Image})
	return err
}

func dropSent(r *saga.Run, s *captureState) error {
	_, err := steps.RemoveUpload.Call(r, "", steps.ImageFile{Image: s.In.Image})
	return err
}

func importCopy(r *saga.Run, s *captureState) (err error) {
	s.Made, err = steps.ImportImage.Call(r, "", steps.ImageImport{Image: s.In.Image, Format: api.FormatQCOW2, Upload: s.In.Image, SHA256: s.Sent.SHA256})
	return err
}

func dropCaptured(r *saga.Run, s *captureState) error {
	_, err := steps.RemoveImage.Call(r, "", steps.ImageFile{Image: s.In.Image})
	return err
}
