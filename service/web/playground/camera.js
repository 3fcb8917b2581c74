// One picture from the camera, as a file like any other.

import { $ } from "./dom.js";

let taken = 0;

function fail(text) {
  $("camera-problem").textContent = text;
  $("camera-problem").hidden = false;
  $("shoot").disabled = true;
}

/** Makes the camera's button work; `receive` gets each picture as a File. */
export function listenToCamera(receive) {
  const dialog = $("camera-dialog");
  const video = $("camera");

  $("open-camera").addEventListener("click", async () => {
    $("camera-problem").hidden = true;
    $("shoot").disabled = false;
    dialog.showModal();
    if (!navigator.mediaDevices) {
      fail("Browsers give pages a camera over HTTPS or on localhost only.");
      return;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      if (dialog.open) video.srcObject = stream;
      else stop(stream);
    } catch (error) {
      fail(error.name === "NotAllowedError" ? "The browser did not allow the camera." : "There is no camera to use.");
    }
  });

  $("shoot").addEventListener("click", () => {
    if (!video.videoWidth) return;
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob((blob) => {
      taken += 1;
      receive([new File([blob], `camera-${taken}.jpg`, { type: "image/jpeg" })]);
      dialog.close();
    }, "image/jpeg", 0.92);
  });

  dialog.addEventListener("close", () => {
    stop(video.srcObject);
    video.srcObject = null;
  });
}

function stop(stream) {
  for (const track of stream?.getTracks() || []) track.stop();
}
